"""An encoder bundle made by hand, without PyTorch: the mean of its tokens' vectors, and a prompt before every text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecompress.kinds.encoder.settings import EncoderSettings
from edgecompress.types.bundle import TensorSpec, TextSettings
from tests.decoder_bundle import VOCAB, tokenizer
from tests.tiny_bundle import write_tiny_bundle

SIZE, LONGEST = 32, 100


def _model() -> onnx.ModelProto:
    table = np.random.default_rng(0).standard_normal((VOCAB, SIZE)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["vectors"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["vectors", "weights"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "second"], ["sums"], keepdims=0),
        helper.make_node("ReduceSum", ["weights", "second"], ["counts"], keepdims=0),
        helper.make_node("Div", ["sums", "counts"], ["sentence_embedding"]),
    ]
    constants = {"table": table, "last": np.array([2]), "second": np.array([1])}
    names = ("input_ids", "attention_mask")
    graph = helper.make_graph(
        nodes,
        "encoder",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in names],
        [helper.make_tensor_value_info("sentence_embedding", TensorProto.FLOAT, ["B", SIZE])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def encoder_bundle(folder: Path) -> Path:
    text = TextSettings(
        tokenizer="tokenizer.json", max_length_tokens=LONGEST, prompts={"query": "why is "}, default_prompt="query"
    )
    return write_tiny_bundle(
        folder,
        {"model.onnx": _model().SerializeToString(), "tokenizer.json": tokenizer().to_str().encode()},
        name="tiny-encoder",
        kind="encoder",
        task="sentence-similarity",
        inputs=("input_ids", "attention_mask"),
        output=TensorSpec(name="sentence_embedding", dtype="float32", shape=("B", SIZE)),
        settings=EncoderSettings(text=text),
    )
