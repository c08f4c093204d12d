"""``edgecompress run BUNDLE 1 2 [--times N]``."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

from edgecompress.errors import UsageError
from edgecompress.kinds.base import FlagGroup
from edgecompress.terminal import print_results, read_inputs

PURPOSE = "sums"


def add_arguments(group: FlagGroup) -> None:
    group.add_argument("--times", type=int, help="multiply the sum")
    group.add_argument("--top-k", type=int, help="nothing here")


def run(model: Any, options: Namespace) -> int:
    try:
        first, second = (float(text) for text in read_inputs(options.inputs, options.file))
    except ValueError as error:
        raise UsageError("run needs two numbers", hint="For example: edgecompress run BUNDLE 1 2") from error
    result = model.add(first, second) * (options.times or 1)
    print_results(model.manifest.task, [f"{first:g} + {second:g}"], [{"sum": result}], as_json=options.json)
    return 0
