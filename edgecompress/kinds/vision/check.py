"""Checks a bundle on this machine against the PyTorch outputs that it carries."""

from __future__ import annotations

from functools import partial

from edgecompress.kinds.vision.metric import measure
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.self_check import check_outputs
from edgecompress.types.report import Fidelity


def check(source: OpenBundle) -> Fidelity:
    """Raises BundleError, or HostError if the bundle cannot run on this machine."""
    return check_outputs(source, partial(measure, source.manifest.task))
