"""Reads a checkpoint's generation settings: special tokens, chat template, sampling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgecompress.capture.checkpoint import read_json
from edgecompress.errors import StudentError
from edgecompress.types.bundle import GenerationSettings
from edgecompress.types.graph import Graph
from edgecompress.types.student import Student

CHAT_TEMPLATE = "chat_template.jinja"
_THINK_TAGS = (("<think>", "</think>"), ("<reasoning>", "</reasoning>"), ("[THINK]", "[/THINK]"))


def chat_template(student: Student) -> str | None:
    """Return the chat template's Jinja source, or None. A separate file takes precedence over tokenizer_config.json."""
    path = student.path / CHAT_TEMPLATE
    if path.exists():
        return path.read_text(encoding="utf-8")
    said = read_json(student.path / "tokenizer_config.json").get("chat_template")
    if isinstance(said, list):  # several named templates
        named = {t.get("name"): t.get("template") for t in said if isinstance(t, dict)}
        said = named.get("default") or next(iter(named.values()), None)
    return said if isinstance(said, str) else None


def generation_settings(student: Student, graph: Graph, tokenizer_path: Path) -> GenerationSettings:
    """Return the settings from the checkpoint's files and the shapes of the captured (or any later) graph.

    ``chat_template`` is the file name of the template in a bundle, if the checkpoint has one.
    """
    config = read_json(student.path / "config.json")
    said = read_json(student.path / "generation_config.json")
    tokenizer = read_json(student.path / "tokenizer_config.json")
    added = _added_tokens(tokenizer_path)
    model = ir.load(graph.path)
    past = [value for value in model.graph.inputs if (value.name or "").endswith(".key")]
    if not past or past[0].shape is None or model.graph.outputs[0].shape is None:
        raise StudentError("the graph has no KV cache, so it is not a decoder")
    kv_heads, head_size = past[0].shape[1], past[0].shape[3]
    eos = _ids(said.get("eos_token_id", config.get("eos_token_id")))
    if not eos:
        eos = _ids(added.get(_content(tokenizer.get("eos_token"))))
    bos = _ids(said.get("bos_token_id", config.get("bos_token_id")))
    pad = _ids(said.get("pad_token_id", config.get("pad_token_id")))
    if not pad:
        pad = _ids(added.get(_content(tokenizer.get("pad_token")))) or eos
    tags = next((pair for pair in _THINK_TAGS if all(tag in added for tag in pair)), (None, None))
    return GenerationSettings(
        context_length_tokens=student.max_length_tokens or 0,
        layers=len(past),
        kv_heads=int(str(kv_heads)),
        head_size=int(str(head_size)),
        vocab_size=int(str(model.graph.outputs[0].shape[2])),
        kv_dtype=past[0].dtype.numpy().name if past[0].dtype is not None else "float32",
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos,
        pad_token_id=pad[0] if pad else 0,
        chat_template=CHAT_TEMPLATE if chat_template(student) is not None else None,
        think_start=tags[0],
        think_end=tags[1],
        temperature=_number(said, "temperature", 1.0),
        top_k=int(_number(said, "top_k", 0)),
        top_p=_number(said, "top_p", 1.0),
        repetition_penalty=_number(said, "repetition_penalty", 1.0),
        do_sample=bool(said.get("do_sample", False)),
    )


def _added_tokens(tokenizer_path: Path) -> dict[str | None, int]:
    vocabulary: dict[str, Any] = json.loads(tokenizer_path.read_text(encoding="utf-8"))
    return {token["content"]: int(token["id"]) for token in vocabulary.get("added_tokens", [])}


def _content(token: object) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _ids(value: object) -> tuple[int, ...]:
    """Checkpoints have one id, a list or none."""
    if isinstance(value, bool) or value is None:
        return ()
    if isinstance(value, int):
        return (value,) if value >= 0 else ()
    return tuple(int(v) for v in value if v is not None) if isinstance(value, list) else ()


def _number(said: dict[str, Any], name: str, default: float) -> float:
    value = said.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else default
