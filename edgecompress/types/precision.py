"""The precisions: dtypes of weights and activations. Each has a scheme in ``edgecompress.quantize``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

FP32, FP16, FP8 = "fp32", "fp16", "fp8"
INT8_DYNAMIC, INT8_STATIC = "int8-dynamic", "int8-static"
INT8_WEIGHTS, INT4_WEIGHTS, MIXED_WEIGHTS = "int8-weights", "int4-weights", "mixed-weights"

INT4, INT8, MIXED = "int4", "int8", "mixed"
"""Short names; the kind of student or the backend defines their meaning."""

AUTO = "auto"
"""Measure the candidates and choose the fastest within the quality budget."""


@dataclass(frozen=True, kw_only=True)
class Precision:
    name: str
    weights: str  # dtype that they are stored in; the narrowest, if there are several
    activations: str | None  # dtype of layers' inputs; None: the float that the graph computes in
    calibrated: bool  # calibration text determines or corrects the activation scales
    needs: frozenset[str]  # dtypes among Target.computes
    searched: bool = True  # "auto" tries it
    unmeasured_rank: int  # order of choice if this machine does not match the target: 0 first

    @property
    def weights_alone(self) -> bool:
        """Whether only weights are quantized, while layers' inputs stay float."""
        return self.activations is None and not self.weights.startswith("float")


_ALL = (
    Precision(
        name=FP32, weights="float32", activations=None, calibrated=False, needs=frozenset({"float32"}),
        unmeasured_rank=3,
    ),
    Precision(
        name=FP16, weights="float16", activations=None, calibrated=False, needs=frozenset({"float16"}),
        unmeasured_rank=4,
    ),
    Precision(
        name=INT8_DYNAMIC, weights="int8", activations="uint8", calibrated=True, needs=frozenset({"int8"}),
        unmeasured_rank=0,
    ),
    Precision(
        name=INT8_STATIC, weights="int8", activations="uint8", calibrated=True, needs=frozenset({"int8"}),
        unmeasured_rank=1,
    ),
    Precision(
        name=INT8_WEIGHTS, weights="int8", activations=None, calibrated=False, needs=frozenset({"int8"}),
        unmeasured_rank=2,
    ),
    Precision(
        name=INT4_WEIGHTS, weights="int4", activations=None, calibrated=False, needs=frozenset({"int4"}),
        unmeasured_rank=5,
    ),
    # int8 for the weights that the logits are most sensitive to, int4 for the others; only on request.
    Precision(
        name=MIXED_WEIGHTS, weights="int4", activations=None, calibrated=False, needs=frozenset({"int4"}),
        searched=False, unmeasured_rank=6,
    ),
    # E4M3 for weights and activations, one scale per tensor.
    Precision(
        name=FP8, weights="float8", activations="float8", calibrated=True, needs=frozenset({"float8"}),
        searched=False, unmeasured_rank=7,
    ),
)  # fmt: skip

PRECISIONS: Mapping[str, Precision] = {precision.name: precision for precision in _ALL}
"""Every concrete precision, in the order in which ``auto`` tries them."""

SHORT_FOR_WEIGHTS: Mapping[str, str] = {INT4: INT4_WEIGHTS, INT8: INT8_WEIGHTS, MIXED: MIXED_WEIGHTS}
"""Short names for kinds whose activations stay float; such a kind opts in."""
