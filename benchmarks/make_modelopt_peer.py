"""Quantize an ONNX graph with NVIDIA's ModelOpt, with several of its methods.

ModelOpt 0.47 needs other versions of onnx and onnxruntime, so this script runs with the python of its own venv and
imports nothing from edgecompress: ``VENV/bin/python benchmarks/make_modelopt_peer.py MODEL.onnx TEXTS.npz OUT``. TEXTS
has one array per graph input, all texts stacked. The last line of stdout is one JSON document: the path of each
variant's graph, or the error, and the versions.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# Its defaults first, and then what a user tries next: the largest value for entropy, attention's own products left
# alone, and products with weights alone, without what it rounds around residual additions.
VARIANTS: dict[str, dict[str, Any]] = {
    "int8": {"quantize_mode": "int8"},
    "int8-max": {"quantize_mode": "int8", "calibration_method": "max"},
    "int8-max-no-mha": {"quantize_mode": "int8", "calibration_method": "max", "disable_mha_qdq": True},
    "int8-max-products": {
        "quantize_mode": "int8",
        "calibration_method": "max",
        "disable_mha_qdq": True,
        "op_types_to_quantize": ["MatMul"],
    },
    "fp8": {"quantize_mode": "fp8"},
    "fp8-max": {"quantize_mode": "fp8", "calibration_method": "max"},
    "fp8-max-products": {
        "quantize_mode": "fp8",
        "calibration_method": "max",
        "disable_mha_qdq": True,
        "op_types_to_quantize": ["MatMul"],
    },
}


def main() -> int:
    from modelopt.onnx.quantization import quantize

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("out_dir", type=Path)
    args = parser.parse_args()
    with np.load(args.calibration) as arrays:
        data = {name: arrays[name] for name in arrays.files}
    shapes = ",".join(f"{name}:{'x'.join(map(str, (8, *array.shape[1:])))}" for name, array in data.items())
    made, failed = {}, {}
    for name, options in VARIANTS.items():
        path = args.out_dir / f"{name}.onnx"
        try:
            quantize(
                str(args.model),
                calibration_data=data,
                calibration_shapes=shapes,
                calibration_eps=["cpu"],
                output_path=str(path),
                log_level="ERROR",
                **options,
            )
        except Exception as error:  # a variant that it cannot make is a finding
            failed[name] = f"{type(error).__name__}: {error}"[:300]
            continue
        if path.exists():
            made[name] = str(path)
        else:
            failed[name] = "it wrote no graph"
    packages = ("nvidia-modelopt", "onnx", "onnxruntime", "torch")
    print(json.dumps({"models": made, "failed": failed, "versions": {p: version(p) for p in packages}}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
