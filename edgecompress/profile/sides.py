"""What can be compared: bundles, and what others make of the same student; each given the same tokens."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import HostError, UsageError
from edgecompress.formats.manifest import open_bundle
from edgecompress.runtime.decoder import Cancellation
from edgecompress.runtime.models import open_decoder, open_model, read_prompt
from edgecompress.runtime.session import check_host

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
KINDS = ("torch", "openvino", "onnx")
_SEED_TOKENS = (1000, 20000)  # ids of words in every vocabulary of that size


@dataclass(frozen=True)
class Side:
    """``run`` takes int64 [B, T] token ids and gives an output, float [B, …]. It is closed by whoever opened it."""

    run: Callable[[Array], Array]
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Spec:
    """A side as the command line names it; each call of ``open`` is a fresh one."""

    name: str
    open: Callable[[int], Side]
    vocab_size: int | None = None
    most_tokens: int | None = None


def parse_side(text: str, *, allow_mismatch: bool = False) -> Spec:
    """A bundle's folder, or torch:CHECKPOINT, openvino:MODEL.xml, onnx:MODEL.onnx. Raises UsageError, BundleError."""
    kind, found, path = text.partition(":")
    if not found or kind not in KINDS:
        return _bundle(Path(text), text, allow_mismatch)
    if not Path(path).exists():
        raise UsageError(f"{text}: there is no {path}", hint=f"Give {kind}: and a path that is there.")
    return Spec(text, {"torch": _torch, "openvino": _openvino, "onnx": _onnx}[kind](Path(path)))


def token_ids(batch: int, tokens: int, vocab_size: int | None) -> Array:
    """int64 [B, T], the same for every side."""
    low, high = _SEED_TOKENS
    if vocab_size is not None and vocab_size <= high:
        low, high = min(10, vocab_size - 1), vocab_size
    return np.random.default_rng(batch * 100_003 + tokens).integers(low, high, (batch, tokens))


def _feed(ids: Array, names: set[str]) -> dict[str, Array]:
    made = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    unknown = names - set(made)
    if unknown:
        raise UsageError(
            f"the graph has an input '{min(unknown)}', which texts alone do not give", hint="Compare an encoder."
        )
    return {name: made[name] for name in names}


def _bundle(path: Path, name: str, allow_mismatch: bool) -> Spec:
    manifest, folder = open_bundle(path)
    if not allow_mismatch:
        check_host(manifest)
    if manifest.image is not None:
        raise UsageError(f"{path} takes images, and texts are compared", hint="Use `edgecompress profile`.")
    if manifest.generation is not None:
        settings = manifest.generation

        def open_one(threads: int) -> Side:
            decoder, cancel = open_decoder(manifest, folder, threads, None), Cancellation()
            caches: dict[tuple[int, int], Any] = {}

            def run(ids: Array) -> Array:
                """The prompts, row by row: the logits behind each, [B, V]."""
                batch, length = ids.shape
                if (batch, length) not in caches:
                    caches.clear()
                    caches[batch, length] = decoder.make_cache(batch, length)
                cache = caches[batch, length]
                # Copied: the cache's next run writes over it.
                last = [read_prompt(decoder, cache, row, ids[row], cancel).copy() for row in range(batch)]
                return np.stack(last)

            return Side(run, decoder.close)

        return Spec(name, open_one, settings.vocab_size, settings.context_length_tokens)

    def open_encoder(threads: int) -> Side:
        model = open_model(manifest, folder, threads, None)
        names = set(model.inputs)
        return Side(lambda ids: model.run(_feed(ids, names))[0], model.close)

    most = manifest.text.max_length_tokens if manifest.text is not None else None
    return Spec(name, open_encoder, None, most)


def _torch(path: Path) -> Callable[[int], Side]:
    """Eager PyTorch in float32, as a user of transformers has it: the last hidden state, or a decoder's last logits."""

    def open_one(threads: int) -> Side:
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        torch.set_num_threads(threads)
        config = AutoConfig.from_pretrained(path)
        decodes = any("CausalLM" in name for name in config.architectures or ())
        auto = AutoModelForCausalLM if decodes else AutoModel
        model = auto.from_pretrained(path, dtype=torch.float32).eval()

        def run(ids: Array) -> Array:
            with torch.inference_mode():
                tokens = torch.from_numpy(ids)
                if decodes:
                    found = model(input_ids=tokens, logits_to_keep=1).logits[:, -1]
                else:
                    found = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state
                result: Array = found.numpy()
                return result

        return Side(run)

    return open_one


def _openvino(path: Path) -> Callable[[int], Side]:
    def open_one(threads: int) -> Side:
        try:
            openvino = importlib.import_module("openvino")
        except ImportError as error:
            raise HostError("openvino is not installed", hint="pip install 'edgecompress[openvino]'") from error
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(str(path), "CPU", options)
        request = compiled.create_infer_request()
        names = {value.any_name for value in compiled.inputs}

        def run(ids: Array) -> Array:
            request.infer(_feed(ids, names), share_inputs=True)
            result: Array = request.get_output_tensor(0).data
            return result

        return Side(run)

    return open_one


def _onnx(path: Path) -> Callable[[int], Side]:
    """Plain ONNX Runtime, its own optimizations and defaults but for the threads."""

    def open_one(threads: int) -> Side:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {value.name for value in session.get_inputs()}

        def run(ids: Array) -> Array:
            result: Array = session.run(None, _feed(ids, names))[0]
            return result

        return Side(run)

    return open_one
