"""Writes the files that onnxruntime-genai needs: a graph, genai_config.json and tokenizer_config.json.

For onnxruntime-genai 0.18 and its model type "decoder", which covers any decoder with a KV cache. The graph is the
bundle's, except that it returns logits [B, 1, V], which genai treats as the last position's. Both graphs share one
weights file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from tokenizers import Tokenizer

from edgecompress.errors import RecipeError, StudentError
from edgecompress.formats.codec import dumps
from edgecompress.graph.sessions import open_session
from edgecompress.lower.last_logits import POSITIONS, keep_last_logits
from edgecompress.types.arrays import Feed
from edgecompress.types.bundle import GenerationSettings, RuntimeSettings

GRAPH = "genai.onnx"
_INPUTS = ("input_ids", "attention_mask", "position_ids")
_PAST, _PRESENT = "past_key_values.%d.", "present.%d."
# tokenizer.json's model type -> the class with which genai's tokenizer (onnxruntime-extensions) uses tokenizer.json
# unchanged. The checkpoint's own class would add rules of its own.
_TOKENIZER_CLASSES = {"BPE": "TokenizersBackend", "Unigram": "SentencePieceBackend"}


def require_tokenizer(tokenizer: Path) -> str:
    """Return the tokenizer class for genai. Raises StudentError if genai does not support the tokenizer."""
    kind = json.loads(tokenizer.read_text(encoding="utf-8")).get("model", {}).get("type")
    if kind not in _TOKENIZER_CLASSES:
        raise StudentError(
            f"onnxruntime-genai does not support {kind} tokenizers, only {' and '.join(_TOKENIZER_CLASSES)}",
            hint="Omit --format genai to export a plain bundle.",
        )
    return _TOKENIZER_CLASSES[kind]


def genai_files(
    model: Path, settings: GenerationSettings, runtime: RuntimeSettings, tokenizer: Path
) -> dict[str, Path | str]:
    """Return file name -> content. ``model`` is the bundle's model.onnx, with its weights in a separate file.

    Writes ``genai.onnx`` beside ``model``. Raises RecipeError if genai does not support an input of the graph,
    StudentError if it does not support the tokenizer.
    """
    loaded = ir.load(model)
    names = [value.name or "" for value in loaded.graph.inputs]
    cache = {_PAST % layer + side for layer in range(settings.layers) for side in ("key", "value")}
    unknown = [name for name in names if name not in cache and name not in (*_INPUTS, POSITIONS)]
    if unknown or not cache <= set(names):
        what = f"the input '{unknown[0]}'" if unknown else "a cache with keys and values in some of its layers only"
        raise RecipeError(
            f"onnxruntime-genai does not support {what}", hint="Omit --format genai to export a plain bundle."
        )
    keep_last_logits(loaded)
    path = model.with_name(GRAPH)
    ir.save(loaded, path)  # weights stay in model.onnx's data file
    inputs = [name for name in _INPUTS if name in names]
    return {
        GRAPH: path,
        "genai_config.json": dumps(_config(inputs, settings, runtime)),
        "tokenizer_config.json": dumps(_tokenizer_config(settings, tokenizer)),
    }


def require_same_logits(model: Path, feed: Feed, threads: int) -> None:
    """Raises StudentError if genai's graph, beside ``model``, gives different logits for a feed of one text."""
    ours, theirs = (open_session(model.with_name(name), threads)(feed)[0] for name in (model.name, GRAPH))
    if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=1e-4, atol=1e-4):
        raise StudentError(
            "the graph for onnxruntime-genai gives different logits than the bundle's",
            hint="Omit --format genai to export a plain bundle.",
        )


def _config(inputs: list[str], settings: GenerationSettings, runtime: RuntimeSettings) -> dict[str, Any]:
    """genai_config.json. It has no extra keys, since genai rejects unknown ones."""
    options: dict[str, Any] = {"provider_options": []}
    if runtime.threads is not None:
        options["intra_op_num_threads"] = runtime.threads  # the default is one thread
    if runtime.graph_optimization == "disabled":
        options["graph_optimization_level"] = "ORT_DISABLE_ALL"  # the model was optimized offline
    decoder = {
        "filename": GRAPH,
        "session_options": options,
        "num_hidden_layers": settings.layers,
        "num_key_value_heads": settings.kv_heads,
        "head_size": settings.head_size,
        "inputs": {name: name for name in inputs}
        | {"past_key_names": _PAST + "key", "past_value_names": _PAST + "value"},
        "outputs": {
            "logits": "logits",
            "present_key_names": _PRESENT + "key",
            "present_value_names": _PRESENT + "value",
        },
    }
    model: dict[str, Any] = {
        "type": "decoder",
        "vocab_size": settings.vocab_size,
        "context_length": settings.context_length_tokens,
        "pad_token_id": settings.pad_token_id,
        "decoder": decoder,
    }
    if settings.bos_token_id is not None:
        model["bos_token_id"] = settings.bos_token_id
    if settings.eos_token_ids:
        model["eos_token_id"] = list(settings.eos_token_ids)
    search = {
        "do_sample": settings.do_sample,
        "temperature": settings.temperature,
        "top_k": settings.top_k,  # 0 means no limit in genai too
        "top_p": settings.top_p,
        "repetition_penalty": settings.repetition_penalty,
        "max_length": settings.context_length_tokens,
        "past_present_share_buffer": True,
    }
    return {"model": model, "search": search}


def _tokenizer_config(settings: GenerationSettings, path: Path) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(str(path))
    unknown = json.loads(path.read_text(encoding="utf-8"))["model"].get("unk_token")
    ids = {
        "bos_token": settings.bos_token_id,
        "eos_token": settings.eos_token_ids[0] if settings.eos_token_ids else None,
        "pad_token": settings.pad_token_id,
    }
    tokens = {name: tokenizer.id_to_token(token) for name, token in ids.items() if token is not None}
    encoded = tokenizer.encode("a").ids
    return {
        "tokenizer_class": require_tokenizer(path),
        **{name: token for name, token in {**tokens, "unk_token": unknown}.items() if token is not None},
        "add_bos_token": settings.bos_token_id is not None and encoded[:1] == [settings.bos_token_id],
        "add_eos_token": encoded[-1:] == [ids["eos_token"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": settings.context_length_tokens,
    }
