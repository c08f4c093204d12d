"""A folder with one of everything that a command can be given wrongly, made without PyTorch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgecompress.formats.codec import dumps
from edgecompress.formats.manifest import file_sha256, sidecar
from edgecompress.lineage.signature import sign
from tests.decoder_bundle import decoder_bundle, tokenizer
from tests.lineage.folders import keys
from tests.serve.encoder_bundle import encoder_bundle

WHOLE = Path(__file__).parent.parent / "schema_1"
BERT: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertModel"],
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
}
QWEN = BERT | {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2}
VIT = {
    "model_type": "vit",
    "architectures": ["ViTForImageClassification"],
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
}


def build(folder: Path) -> None:
    _bundles(folder)
    _checkpoints(folder)
    _files(folder)


def _bundles(folder: Path) -> None:
    shutil.copytree(WHOLE / "encoder", folder / "encoder.bundle")
    shutil.copytree(WHOLE / "decoder", folder / "decoder.bundle")
    encoder_bundle(folder / "bare.bundle")
    decoder_bundle(folder / "bare-decoder.bundle")

    def altered(name: str, change: Callable[[Path], None]) -> None:
        copy = folder / f"{name}.bundle"
        shutil.copytree(WHOLE / "encoder", copy)
        change(copy)

    altered("truncated", lambda b: _cut(b / "model.onnx"))
    altered("altered", lambda b: _flip(b / "tokenizer.json"))
    altered("longer", lambda b: (b / "tokenizer.json").write_bytes((b / "tokenizer.json").read_bytes() + b" "))
    altered("incomplete", lambda b: (b / "tokenizer.json").unlink())
    altered("crowded", lambda b: (b / "extra.py").write_text("print()"))
    altered("no-sidecar", lambda b: (b / "manifest.json.sha256").unlink())
    altered("edited", lambda b: (b / "manifest.json").write_text("{}"))
    altered("newer", lambda b: rewrite(b, {"schema_version": 99}))
    altered("no-json", lambda b: rewrite_text(b, "{'a': 1}"))
    altered("old-and-wrong", lambda b: rewrite(b, {"settings": 7}))
    altered("unknown-key", lambda b: rewrite(b, {"schema_version": 2, "colour": "red"}))
    altered("outside", lambda b: rewrite(b, {"files": {"../outside.bin": {"sha256": "0" * 64, "bytes": 4}}}))
    altered("linked", _link_out)
    altered("foreign", lambda b: rewrite_target(b, arch="riscv64"))
    altered("lacking", lambda b: rewrite_target(b, isa=["avx2", "amx_int8", "quantum"]))
    altered("no-report", lambda b: _drop(b, "report.json"))
    altered("no-reference", lambda b: _drop(b, "reference.npz"))
    altered("unreadable-report", lambda b: _replace(b, "report.json", b"{"))
    altered("wrong-report", lambda b: _replace(b, "report.json", b'{"colour": 1}'))
    altered("unlisted", _unlist)
    altered("unset", lambda b: rewrite(b, {"settings": {"text": 7}}, bare=True))
    altered("signed", lambda b: _sign(folder, b))
    shutil.copytree(folder / "signed.bundle", folder / "signed-then-altered.bundle")
    _replace(folder / "signed-then-altered.bundle", "README.md", b"# Another\n")
    altered("wrong-lineage", lambda b: _replace(b, "lineage.json", b'{"colour": 1}'))
    altered("no-graph", lambda b: _replace(b, "model.onnx", b"\x08\x0a" * 40))
    altered("alien", lambda b: rewrite(b, {"kind": "hologram"}, bare=True))


def _sign(folder: Path, bundle: Path) -> None:
    private, public = keys(folder)
    private.rename(folder / "private.pem")
    public.rename(folder / "public.pem")
    sign(bundle, folder / "private.pem")


def _unlist(bundle: Path) -> None:
    """Take the graph out of the list of files, and out of the folder."""
    _drop(bundle, "model.onnx")


def _checkpoints(folder: Path) -> None:
    checkpoint(folder / "student", BERT)
    checkpoint(folder / "decoder", QWEN)
    checkpoint(folder / "images", VIT)
    checkpoint(folder / "no-model-type", {})
    checkpoint(folder / "own-code", BERT | {"auto_map": {"AutoModel": "modeling.Own"}})
    checkpoint(folder / "pair", BERT | {"model_type": "t5", "is_encoder_decoder": True})
    checkpoint(folder / "many-senses", QWEN | {"architectures": ["Qwen2VLForConditionalGeneration"]})
    checkpoint(folder / "headless", QWEN | {"architectures": ["Qwen2Model"]})
    checkpoint(folder / "refused", BERT | {"model_type": "mpnet", "architectures": ["MPNetModel"]})
    checkpoint(folder / "no-tokenizer", BERT, without="tokenizer.json")
    checkpoint(folder / "no-weights", BERT, without="model.safetensors")
    _cut(checkpoint(folder / "cut-weights", BERT) / "model.safetensors")
    pickled = checkpoint(folder / "pickled", BERT, without="model.safetensors")
    (pickled / "pytorch_model.bin").write_bytes(b"pickle")
    indexed = checkpoint(folder / "indexed", BERT, without="model.safetensors")
    (indexed / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    broken = checkpoint(folder / "nan", BERT)
    save_file({"encoder.weight": np.full((2, 2), np.nan, np.float32)}, broken / "model.safetensors")
    (checkpoint(folder / "bad-config", BERT) / "config.json").write_text("{")
    (checkpoint(folder / "list-config", BERT) / "config.json").write_text("[]")
    for name, modules in (
        ("no-pooling", [{"idx": 0, "path": "", "type": "sentence_transformers.models.Transformer"}]),
        ("unknown-module", [{"idx": 0, "path": "", "type": "sentence_transformers.models.LSTM"}]),
        ("old-layout", [{"idx": 0, "path": "0_BERT", "type": "sentence_transformers.models.Transformer"}]),
    ):
        (checkpoint(folder / name, BERT) / "modules.json").write_text(json.dumps(modules))


def _files(folder: Path) -> None:
    for name in ("empty", "weights-only", "adapter", "onnx-folder", "gguf-folder", "holder", "full"):
        (folder / name).mkdir()
    shutil.copytree(WHOLE / "encoder", folder / "holder" / "inner.bundle")
    (folder / "full" / "thesis.tex").write_text("x")
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "onnx-folder" / "model.onnx").write_bytes(b"\x08\x0a")
    (folder / "gguf-folder" / "model.gguf").write_bytes(b"GGUF")
    snapshot = folder / "models--owner--name" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    for name, text in {
        "file.txt": "A cat sits.\nA dog barks.\n",
        "empty.txt": "\n\n",
        "model.gguf": "GGUF\x03",
        "model.onnx": "\x08",
        "bundle.zip": "PK",
        "requests.jsonl": '{"text": "a"}\n{"tokens": 4\n',
        "no-request.jsonl": '{"colour": 4}\n',
        "empty.jsonl": "",
        "prompts.jsonl": '{"prompt": "Say hello"}\n',
        "bad-prompts.jsonl": '{"prompt": 3}\n',
        "list.jsonl": "[1]\n",
        "mixed.jsonl": '{"text": "a"}\n{"prompt": "b", "response": "c"}\n',
        "long.txt": "cat " * 300,
        "trace.jsonl": '{"tokens": 16}\n',
        "responses.jsonl": '{"prompt": "a", "response": "b"}\n',
        "secret.jsonl": '{"prompt": "my key is sk-0123456789"}\n',
        "text.sqlite": "A cat sits.\n",
        "black.toml": 'method = "black-box"\n[student]\nlayers = 1\n',
        "loss.toml": "[student]\nlayers = 1\n[loss]\nhiden = 1.0\n",
        "heads.toml": "[student]\nlayers = 1\nheads = 5\n",
        "key.txt": "two words\n",
        "profile.json": "{}",
        "slip.toml": "[quantize]\nsmoth_alpha = 0.5\n",
        "typed.toml": "precision = 8\n",
        "no-toml.toml": "precision = \n",
        "newer.toml": "schema_version = 99\n",
        "range.toml": "[quality]\nmin_fidelity = 2.0\n",
        "policy.toml": '[provenance]\npolicy = "strict"\n',
        "notices.toml": '[provenance]\nstatus = "permitted"\nnotices = ["NOTES.txt"]\n',
        "one.toml": "[student]\nlayers = 1\n",
        "nine.toml": "[student]\nlayers = 99\n",
        "colour.toml": '[student]\ncolour = "red"\n',
        "target.toml": 'name = "other"\n',
        "board.toml": 'colour = "red"\n',
        "jobs.jsonl": '{"target": "a"}\n',
        "bad-jobs.jsonl": '{"bundle": \n',
    }.items():
        (folder / name).write_text(text)
    (folder / "binary.txt").write_bytes(b"\x7fELF\x00\x01")
    (folder / "latin.txt").write_bytes("caf\xe9\n".encode("latin-1"))


def checkpoint(folder: Path, config: Mapping[str, Any], without: str = "") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer().to_str())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    save_file({"encoder.weight": np.ones((2, 2), np.float32)}, folder / "model.safetensors")
    if without:
        (folder / without).unlink()
    return folder


def rewrite(bundle: Path, changes: Mapping[str, Any], *, bare: bool = False) -> None:
    """Change the manifest and its sidecar. ``bare``: of the current schema, which the bundle by hand is of."""
    if bare:
        shutil.rmtree(bundle)
        encoder_bundle(bundle)
    data = json.loads((bundle / "manifest.json").read_text()) | changes
    rewrite_text(bundle, dumps(data))


def rewrite_text(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    (bundle / "manifest.json.sha256").write_text(sidecar("manifest.json", text.encode()))


def rewrite_target(bundle: Path, **changes: Any) -> None:
    target = json.loads((bundle / "manifest.json").read_text())["target"] | changes
    rewrite(bundle, {"target": target})


def _drop(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    del files[name]
    rewrite(bundle, {"files": files})


def _replace(bundle: Path, name: str, content: bytes) -> None:
    (bundle / name).write_bytes(content)
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    files[name] = {"sha256": file_sha256(bundle / name), "bytes": len(content)}
    rewrite(bundle, {"files": files})


def _link_out(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").symlink_to("../encoder.bundle/tokenizer.json")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def _flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
