"""``edgecompress run`` on an image encoder: labels or vectors."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from edgecompress.kinds.base import FlagGroup
from edgecompress.terminal import print_results, read_inputs

if TYPE_CHECKING:
    from edgecompress.kinds.vision.runtime import ImageEncoder

PURPOSE = "images"


def add_arguments(group: FlagGroup) -> None:
    group.add_argument("--top-k", type=int, help="predictions shown (5)")
    group.add_argument("--batch-size", type=int, help="maximum inputs per run (default: 32)")


def run(encoder: ImageEncoder, options: Namespace) -> int:
    """Run image files; the inputs are their paths."""
    paths = read_inputs(options.inputs, options.file)
    batch_size = 32 if options.batch_size is None else options.batch_size
    results = encoder.predict(paths, batch_size=batch_size, top_k=5 if options.top_k is None else options.top_k)
    print_results(encoder.manifest.task, paths, results, as_json=options.json)
    return 0
