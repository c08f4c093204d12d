"""An encoder bundle made by hand, without PyTorch: the mean of its tokens' vectors, and a prompt before every text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgecompress.formats.codec import to_jsonable
from edgecompress.formats.cpu import host_arch
from edgecompress.formats.manifest import file_sha256, write_manifest
from edgecompress.kinds.encoder.settings import EncoderSettings
from edgecompress.types.bundle import (
    MODEL,
    FileRecord,
    Manifest,
    ModelRecord,
    RuntimeSettings,
    TargetRecord,
    TensorSpec,
    TextSettings,
    Variant,
)
from tests.decoder_bundle import VOCAB, tokenizer

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
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(_model().SerializeToString())
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    records = {
        name: FileRecord(sha256=file_sha256(folder / name), bytes=(folder / name).stat().st_size)
        for name in ("model.onnx", "tokenizer.json")
    }
    text = TextSettings(
        tokenizer="tokenizer.json",
        max_length_tokens=LONGEST,
        prompts={"query": "why is "},
        default_prompt="query",
    )
    variant = Variant(
        backend="onnxruntime-cpu",
        path="model.onnx",
        inputs=tuple(
            TensorSpec(name=name, dtype="int64", shape=("B", "T")) for name in ("input_ids", "attention_mask")
        ),
        outputs=(TensorSpec(name="sentence_embedding", dtype="float32", shape=("B", SIZE)),),
        runtime=RuntimeSettings(threads=1, graph_optimization="disabled"),
        providers=("CPUExecutionProvider",),
    )
    manifest = Manifest(
        tool_version="0",
        name="tiny-encoder",
        kind="encoder",
        task="sentence-similarity",
        architecture="tiny",
        precision="fp32",
        target=TargetRecord(name="here", arch=host_arch(), isa=()),
        models={MODEL: ModelRecord(variants=(variant,))},
        settings=to_jsonable(EncoderSettings(text=text)),
        files=records,
    )
    write_manifest(manifest, folder)
    return folder
