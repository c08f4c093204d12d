"""The sides of ``bench_gpu_backends``: torch eager and compiled, and bundles of ours; arrays of the host in and out."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.ours_encoder import COMMAND
from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds.decoder.runtime import open_decoder
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.loading import open_models
from edgecompress.runtime.bundle import read_settings
from edgecompress.runtime.cancellation import Cancellation
from edgecompress.runtime.decoder import read_prompt
from edgecompress.targets import find_target, known_targets

Feed = Mapping[str, npt.NDArray[np.int64]]
Vectors = npt.NDArray[np.float32]
_TABLES = ("Gather", "RotaryEmbedding")  # a few rows of these are read
STEPS_BEHIND = 160  # room for new tokens behind a prompt


@dataclass(frozen=True, kw_only=True)
class EncoderSide:
    """``run`` gives the last hidden state or the vectors, float32, on the host."""

    name: str
    run: Callable[[Feed], Vectors]
    weight_bytes: int
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True, kw_only=True)
class DecoderSide:
    """One sequence: ``prefill`` reads a prompt, ``step`` one token behind it; both give logits [V] on the host."""

    name: str
    prefill: Callable[[npt.NDArray[np.int64]], Vectors]
    step: Callable[[int], Vectors]
    weight_bytes: int  # read for every token: all but the table of words
    kv_bytes_per_token: int
    close: Callable[[], None] = lambda: None


def target_for(capability: tuple[int, int]) -> str:
    """A known target of that compute capability. Raises SystemExit."""
    for name in known_targets():
        target = find_target(name)
        if target.compute_capability == capability and target.arch == "x86_64":
            return name
    raise SystemExit(f"no known target has compute capability {'.'.join(map(str, capability))}")


def make_bundle(student: Path, out: Path, target: str, backend: str, precision: str, *flags: str) -> Path:
    """``edgecompress export``, and ``build`` where the engine is made on the device; kept if it is there already.

    Raises RuntimeError with the command's last words.
    """
    if not out.exists():
        asked = ["export", str(student), "--target", target, "--backend", backend, "--precision", precision, *flags]
        _command(*asked, "-o", str(out))
    manifest, _ = open_bundle(out)
    if manifest.variant().build is not None and manifest.variant().engine is None:
        _command("build", str(out), "--device", "0")
    return out


def _command(*words: str) -> None:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it does not say why"]
        raise RuntimeError(f"{' '.join(words[:2])} ended with {done.returncode}: {' '.join(said[-2:])[:400]}")


def our_encoder(name: str, bundle: Path, device: int | None) -> EncoderSide:
    manifest, folder = open_bundle(bundle)
    model = open_models(manifest, folder, threads=1, device=device).open()
    return EncoderSide(
        name=name, run=lambda feed: model.run(feed)[0], weight_bytes=_weight_bytes(bundle), close=model.close
    )


def torch_encoder(name: str, checkpoint: Path, device: str, compiled: bool) -> EncoderSide:
    """Mean of the tokens' last hidden states, normalized, as sentence-transformers does it."""
    from transformers import AutoModel

    dtype = torch.float16 if device != "cpu" else torch.float32
    model = AutoModel.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa").eval().to(device)

    def forward(ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        hidden = model(input_ids=ids, attention_mask=mask, token_type_ids=types).last_hidden_state.float()
        kept = mask[..., None].float()
        return torch.nn.functional.normalize((hidden * kept).sum(1) / kept.sum(1), dim=1)

    run = torch.compile(forward, mode="reduce-overhead", dynamic=False) if compiled else forward

    @torch.inference_mode()
    def call(feed: Feed) -> Vectors:
        moved = [torch.from_numpy(feed[n]).to(device) for n in ("input_ids", "attention_mask", "token_type_ids")]
        vectors: Vectors = run(*moved).cpu().numpy()
        return vectors

    size = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    return EncoderSide(name=name, run=call, weight_bytes=size * dtype.itemsize)


def our_decoder(name: str, bundle: Path, device: int | None) -> DecoderSide:
    manifest, folder = open_bundle(bundle)
    source = open_models(manifest, folder, threads=1, device=device)
    decoder = open_decoder(source, read_settings(DecoderSettings, manifest).generation)
    cancel, last = Cancellation(), np.zeros(1, dtype=np.int64)
    state: dict[str, Any] = {"cache": None, "past": 0}

    def prefill(ids: npt.NDArray[np.int64]) -> Vectors:
        wanted = len(ids) + STEPS_BEHIND
        if state["cache"] is None or state["cache"].capacity_tokens < wanted:
            state["cache"] = decoder.make_cache(1, wanted)
        state["past"] = len(ids)
        return read_prompt(decoder, state["cache"], 0, ids, cancel)

    def step(token: int) -> Vectors:
        ids, past = np.array([[token]], dtype=np.int64), np.array([state["past"]], dtype=np.int64)
        logits, _ = decoder.run(state["cache"], 0, ids, past, last, cancel)
        state["past"] += 1
        return logits[0, 0]

    def close() -> None:
        state["cache"] = None
        decoder.close()

    return DecoderSide(
        name=name,
        prefill=prefill,
        step=step,
        weight_bytes=_weight_bytes(bundle),
        kv_bytes_per_token=sum(tensor.bytes_per_token for tensor in decoder.tensors),
        close=close,
    )


def torch_decoder(name: str, checkpoint: Path, device: str, compiled: bool, most_tokens: int) -> DecoderSide:
    """Steps over transformers' own static cache, in place; compiled: the step alone, as it is done in production."""
    from transformers import AutoModelForCausalLM, StaticCache

    dtype = torch.float16 if device != "cpu" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa").eval().to(device)
    cache = StaticCache(config=model.config, max_cache_len=most_tokens)
    state = {"past": 0}

    def forward(ids: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        found = model(input_ids=ids, position_ids=places[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        return found.logits[0, -1].float()  # type: ignore[no-any-return]

    fast = torch.compile(forward, mode="reduce-overhead", dynamic=False) if compiled else forward

    @torch.inference_mode()
    def run(ids: npt.NDArray[np.int64], how: Callable[..., torch.Tensor]) -> Vectors:
        places = torch.arange(state["past"], state["past"] + len(ids), device=device)
        logits: Vectors = how(torch.from_numpy(ids)[None].to(device), places).cpu().numpy()
        state["past"] += len(ids)
        return logits

    @torch.inference_mode()
    def prefill(ids: npt.NDArray[np.int64]) -> Vectors:
        cache.reset()
        state["past"] = 0
        return run(ids, forward)

    config = model.config
    size = sum(p.numel() for p in model.parameters()) - model.get_input_embeddings().weight.numel()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return DecoderSide(
        name=name,
        prefill=prefill,
        step=lambda token: run(np.array([token], dtype=np.int64), fast),
        weight_bytes=size * dtype.itemsize,
        kv_bytes_per_token=2 * config.num_hidden_layers * config.num_key_value_heads * head * dtype.itemsize,
    )


def _weight_bytes(bundle: Path) -> int:
    """What a run reads of the weights, at the least: every layer of the report but tables."""
    from edgecompress.formats.manifest import read_report

    return sum(layer.bytes for layer in read_report(bundle).layers if not layer.op.startswith(_TABLES))


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
