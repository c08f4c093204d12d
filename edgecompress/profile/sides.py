"""What can be compared: bundles, and other libraries' versions of the same student, all on the same arrays."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from edgecompress.errors import HostError, UsageError
from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds import find_kind
from edgecompress.loading import open_models
from edgecompress.profile.workload import parse_workloads, workloads_of
from edgecompress.runtime.session import check_host
from edgecompress.runtime.shapes import compared_tokens, parse_texts, token_feed, token_ids
from edgecompress.runtime.subject import Side
from edgecompress.types.arrays import Array, Feed
from edgecompress.types.bundle import Manifest
from edgecompress.types.workload import Workload

_TEXTS = "1x128"


@dataclass(frozen=True)
class Spec:
    """A side as the command line names it; ``open``, given a number of threads, opens a fresh instance."""

    name: str
    open: Callable[[int], Side]
    manifest: Manifest | None = None  # of a bundle
    vocabulary: int | None = None  # its number of token ids; None: unknown


def parse_side(text: str, *, allow_mismatch: bool = False) -> Spec:
    """A bundle's folder, or torch:CHECKPOINT, openvino:MODEL.xml, onnx:MODEL.onnx. Raises UsageError, BundleError."""
    library, found, path = text.partition(":")
    if not found or library not in _LIBRARIES:
        return _bundle(Path(text), text, allow_mismatch)
    if not Path(path).exists():
        raise UsageError(f"{text}: {path} does not exist", hint=f"Give {library}: and an existing path.")
    return Spec(text, _LIBRARIES[library](Path(path)), vocabulary=_vocabulary(Path(path)))


def read_workloads(text: str | None, specs: Sequence[Spec]) -> list[Workload]:
    """As the kind of the first bundle reads them; texts if no side is a bundle. Raises UsageError."""
    manifest = next((spec.manifest for spec in specs if spec.manifest is not None), None)
    if manifest is None:
        return parse_workloads(text or _TEXTS, parse_texts)
    return workloads_of(manifest, text or find_kind(manifest.kind).profile.COMPARED)


def inputs_of(workload: Workload, specs: Sequence[Spec]) -> Feed:
    """The inputs of every side. Raises UsageError for sides that cannot be compared."""
    manifests = [spec.manifest for spec in specs if spec.manifest is not None]
    kinds = sorted({manifest.kind for manifest in manifests})
    if len(kinds) > 1:
        raise UsageError(
            f"these sides are of different kinds: {' and '.join(kinds)}", hint="Compare bundles of one kind."
        )
    if workload.requests:
        raise UsageError(f"{workload.name} is a trace, and a comparison takes shapes", hint="Give --shapes 1x128.")
    if kinds:
        return _within(find_kind(kinds[0]).profile.inputs(workload, manifests), specs)
    return _within(token_feed(token_ids(*compared_tokens(workload))), specs)


def _within(feed: Feed, specs: Sequence[Spec]) -> Feed:
    """The feed with token ids that every side's vocabulary has: larger ids wrap around."""
    known = [spec.vocabulary for spec in specs if spec.vocabulary]
    if not known or "input_ids" not in feed:
        return feed
    return {**feed, "input_ids": feed["input_ids"] % min(known)}


def _part(feed: Feed, names: Collection[str]) -> dict[str, Array]:
    """Raises UsageError for an input of the graph that the feed lacks."""
    unknown = set(names) - set(feed)
    if unknown:
        raise UsageError(
            f"the graph has an input '{min(unknown)}', and this comparison feeds {', '.join(sorted(feed))}",
            hint="Give a graph with these inputs.",
        )
    return {name: feed[name] for name in names}


def _bundle(path: Path, name: str, allow_mismatch: bool) -> Spec:
    manifest, folder = open_bundle(path)
    if not allow_mismatch:
        check_host(manifest)
    side = find_kind(manifest.kind).profile.side

    def open_one(threads: int) -> Side:
        return side(open_models(manifest, folder, threads=threads))

    return Spec(name, open_one, manifest, _vocabulary(folder))


def _vocabulary(folder: Path) -> int | None:
    """The number of token ids of the checkpoint or bundle in a folder."""
    if (config := folder / "config.json").is_file():
        size = json.loads(config.read_text(encoding="utf-8")).get("vocab_size")
        if isinstance(size, int):
            return size
    if (tokenizer := folder / "tokenizer.json").is_file():
        return Tokenizer.from_file(str(tokenizer)).get_vocab_size()
    return None


def _torch(path: Path) -> Callable[[int], Side]:
    """Eager PyTorch in float32 through transformers: the last hidden state, or a decoder's last logits."""

    def open_one(threads: int) -> Side:
        import torch
        from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

        torch.set_num_threads(threads)
        config = AutoConfig.from_pretrained(path)
        decodes = any("CausalLM" in name for name in config.architectures or ())
        auto = AutoModelForCausalLM if decodes else AutoModel
        model = auto.from_pretrained(path, dtype=torch.float32).eval()

        def run(feed: Feed) -> Array:
            with torch.inference_mode():
                tokens = torch.from_numpy(_part(feed, ["input_ids"])["input_ids"])
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

        def run(feed: Feed) -> Array:
            request.infer(_part(feed, names), share_inputs=True)
            result: Array = request.get_output_tensor(0).data
            return result

        return Side(run)

    return open_one


def _onnx(path: Path) -> Callable[[int], Side]:
    """Plain ONNX Runtime with its own optimizations and defaults, except for the threads."""

    def open_one(threads: int) -> Side:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {value.name for value in session.get_inputs()}

        def run(feed: Feed) -> Array:
            result: Array = session.run(None, _part(feed, names))[0]
            return result

        return Side(run)

    return open_one


_LIBRARIES = {"torch": _torch, "openvino": _openvino, "onnx": _onnx}
