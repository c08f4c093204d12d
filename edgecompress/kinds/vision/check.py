"""A bundle checks itself where it is: the PyTorch outputs that it carries against what this machine gives."""

from __future__ import annotations

from functools import partial

from edgecompress.kinds.vision.metric import measure
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.self_check import check_outputs
from edgecompress.types.report import Fidelity


def check(source: OpenBundle) -> Fidelity:
    """Raises BundleError, or HostError where the bundle does not run here."""
    return check_outputs(source, partial(measure, source.manifest.task))
