"""Runs inside the emulated machine: each model of a folder in ONNX Runtime, with a library of custom ops.

``driver.py library.so folder out``: reads NAME.onnx and NAME.npz, writes out/NAME.npz. NumPy and onnxruntime alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

for model in sorted(Path(sys.argv[2]).glob("*.onnx")):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.register_custom_ops_library(sys.argv[1])
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    with np.load(model.with_suffix(".npz")) as feeds:
        found = session.run(None, dict(feeds))
    names = [output.name for output in session.get_outputs()]
    np.savez(Path(sys.argv[3]) / f"{model.stem}.npz", **dict(zip(names, found, strict=True)))
