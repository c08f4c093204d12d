"""Export and quantize a checkpoint with optimum-onnx's ``avx512_vnni`` preset, as its documentation does.

optimum-onnx 0.1.0 pins transformers below 4.58, so this script runs with the python of its own venv and imports nothing
from edgecompress: ``<that venv>/bin/python benchmarks/make_optimum_peer.py <checkpoint> <output folder>``. The last
line of stdout is one JSON document: the path of the ONNX file and the versions that made it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.metadata import version
from pathlib import Path


def make_peer(checkpoint: str, out_dir: Path) -> Path:
    """Write the quantized model under ``out_dir`` and return its path."""
    from optimum.onnxruntime import AutoQuantizationConfig, ORTModelForFeatureExtraction, ORTQuantizer

    with tempfile.TemporaryDirectory() as exported:
        model = ORTModelForFeatureExtraction.from_pretrained(checkpoint, export=True)
        model.save_pretrained(exported)
        quantizer = ORTQuantizer.from_pretrained(exported)
        # per_channel=False is what the command line's --avx512_vnni gives.
        config = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=False)
        quantizer.quantize(save_dir=out_dir, quantization_config=config)
    return next(iter(sorted(out_dir.glob("*.onnx"))))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("out_dir", type=Path)
    args = parser.parse_args()
    path = make_peer(args.checkpoint, args.out_dir)
    packages = ("optimum", "optimum-onnx", "transformers", "onnxruntime", "torch")
    print(json.dumps({"model": str(path), "versions": {name: version(name) for name in packages}}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
