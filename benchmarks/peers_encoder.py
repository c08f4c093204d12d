"""The sides of the encoder benchmark: how to make each, and how to run each with the same number of threads.

Every side maps padded int64 token batches to normalized sentence embeddings, float32 [B, 384]. Where the graph gives
token embeddings, mean pooling and normalization are the same NumPy code for all, and they are part of the time.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.texts_encoder import Feeds, Texts, feeds, token_ids

Vectors = NDArray[np.float32]

BASELINE = "onnxruntime fp32"
INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
SPIN_SETTING = ("session.force_spinning_stop", "1")
"""On every ONNX Runtime session: an idle pool must not burn the core on which the other side is being timed."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """One competitor. ``encode`` exists where the side brings batching of its own: token id rows -> [N, H].

    ``run_many`` spends the same threads the other way: as many batches at once, one thread each.
    """

    name: str
    run: Callable[[Feeds], Vectors]
    model_bytes: int
    note: str = ""
    ours: bool = False
    encode: Callable[[list[tuple[int, ...]]], Vectors] | None = None
    run_many: Callable[[list[Feeds]], list[Vectors]] | None = None


@dataclass(frozen=True, kw_only=True)
class Artifacts:
    """Model files on disk, or why there is none."""

    checkpoint: str
    models: Mapping[str, str]
    absent: Mapping[str, str]
    versions: Mapping[str, Mapping[str, str]]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Artifacts:
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def pool(tokens: NDArray[np.float32], mask: NDArray[np.int64]) -> Vectors:
    """Mean over the real tokens, then unit length: [B, T, H] -> [B, H]."""
    summed = np.matmul(mask.astype(np.float32)[:, None, :], tokens)[:, 0]
    # The division by the token count cancels against the normalization.
    norms = np.sqrt(np.einsum("bh,bh->b", summed, summed))[:, None]
    vectors: Vectors = summed / np.maximum(norms, 1e-12)
    return vectors


def load_torch(checkpoint: str) -> Any:
    """The checkpoint as a module of three inputs whose output is the last hidden state alone.

    The pooler is left out of every exported graph with it: no side computes it.
    """
    import torch
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()

    class LastHiddenState(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            output = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
            return output.last_hidden_state

    return LastHiddenState(AutoModel.from_pretrained(checkpoint, add_pooling_layer=False).eval()).eval()


def _example() -> tuple[Any, ...]:
    import torch

    ids = torch.randint(1000, 30000, (2, 7))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids, mask, torch.zeros_like(ids)


def _export_onnx(module: Any, path: Path) -> None:
    import torch

    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
    torch.onnx.export(
        module,
        _example(),
        str(path),
        dynamo=True,
        dynamic_shapes=(axes, axes, axes),
        input_names=list(INPUT_NAMES),
        output_names=["last_hidden_state"],
        verbose=False,
    )


def make_onnx(checkpoint: str, path: Path) -> None:
    """The plain export that is the baseline: the default of torch.onnx."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _export_onnx(load_torch(checkpoint), path)


def _quantize_dynamic(source: Path, path: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(path))


def _export_openvino(module: Any, path: Path) -> None:
    import openvino

    # Straight from PyTorch, as optimum-intel does: it keeps ScaledDotProductAttention, and was no slower than by ONNX.
    model = openvino.convert_model(module, example_input=_example())
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _quantize_nncf(source: Path, path: Path, tokenizer: Any, texts: Texts) -> None:
    import nncf
    import openvino

    samples = [feeds([row]) for row in token_ids(tokenizer, texts.calibration)]
    model = nncf.quantize(
        openvino.Core().read_model(str(source)),
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
    )
    openvino.save_model(model, str(path), compress_to_fp16=False)


def _make_optimum(python: Path, checkpoint: str, out_dir: Path) -> tuple[str, dict[str, str]]:
    script = Path(__file__).with_name("make_optimum_peer.py")
    done = subprocess.run(
        [str(python), str(script), checkpoint, str(out_dir)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    made = json.loads(done.stdout.strip().splitlines()[-1])
    return made["model"], made["versions"]


def make_artifacts(checkpoint: str, work: Path, tokenizer: Any, texts: Texts, optimum_python: Path | None) -> Artifacts:
    """Export and quantize every peer into ``work``. A peer that cannot be made is recorded with its reason."""
    models: dict[str, str] = {}
    absent: dict[str, str] = {}
    versions: dict[str, dict[str, str]] = {}

    def attempt(name: str, file: str, make: Callable[[Path], None]) -> None:
        path = work / file
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                make(path)
        except Exception as error:  # a peer's failure is a row of the result, whatever its class
            absent[name] = reason(error)
        else:
            models[name] = str(path)

    module = load_torch(checkpoint)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    attempt(BASELINE, "fp32.onnx", lambda path: _export_onnx(module, path))
    if BASELINE in absent:
        raise SystemExit(f"the baseline cannot be exported: {absent[BASELINE]}")
    plain = Path(models[BASELINE])
    attempt("onnxruntime quantize_dynamic", "dynamic.onnx", lambda path: _quantize_dynamic(plain, path))
    if importlib.util.find_spec("openvino") is None:
        absent["openvino"] = "openvino is not installed"
    else:
        attempt("openvino", "openvino.xml", lambda path: _export_openvino(module, path))
    if "openvino" in models:
        source = Path(models["openvino"])
        attempt("openvino nncf int8", "nncf.xml", lambda path: _quantize_nncf(source, path, tokenizer, texts))
    name = "optimum avx512_vnni"
    if optimum_python is None or not optimum_python.exists():
        absent[name] = "no --optimum-python: optimum-onnx 0.1.0 needs a venv of its own"
    else:
        try:
            models[name], versions[name] = _make_optimum(optimum_python, checkpoint, work / "optimum")
        except (RuntimeError, OSError, ValueError) as error:
            absent[name] = reason(error)
    return Artifacts(checkpoint=checkpoint, models=models, absent=absent, versions=versions)


def reason(error: BaseException) -> str:
    """One line for a row that could not be run."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def bytes_of(path: Path) -> int:
    """A model file with the weights that lie beside it: ``x.onnx.data`` or ``x.bin``."""
    beside = [path.with_name(path.name + ".data")] + ([path.with_suffix(".bin")] if path.suffix == ".xml" else [])
    return path.stat().st_size + sum(p.stat().st_size for p in beside if p.exists())


def onnxruntime_side(name: str, path: Path, threads: int) -> Side:
    """Plain sessions with ONNX Runtime's defaults (ENABLE_ALL) but the threads."""
    run = _onnxruntime_run(path, threads)
    if threads == 1:
        return Side(name=name, run=run, model_bytes=bytes_of(path))
    run_alone = _onnxruntime_run(path, 1)
    pool_of_threads = ThreadPoolExecutor(threads)
    return Side(
        name=name,
        run=run,
        model_bytes=bytes_of(path),
        run_many=lambda batches: list(pool_of_threads.map(run_alone, batches)),
    )


def _onnxruntime_run(path: Path, threads: int) -> Callable[[Feeds], Vectors]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry(*SPIN_SETTING)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    wanted = [i.name for i in session.get_inputs()]
    outputs = [o.name for o in session.get_outputs()]
    output = next((o for o in ("last_hidden_state", "token_embeddings") if o in outputs), outputs[0])

    def run(inputs: Feeds) -> Vectors:
        (tokens,) = session.run([output], {key: inputs[key] for key in wanted})
        return pool(tokens, inputs["attention_mask"])

    return run


def openvino_side(name: str, path: Path, threads: int, precision: str | None) -> Side:
    """A compiled model of one stream, and one of as many as threads for many batches at once (AsyncInferQueue).

    ``precision`` None: OpenVINO's own choice, which is bf16 where the CPU has it.
    """
    import openvino

    def compiled(streams: int) -> Any:
        settings: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "ENABLE_CPU_PINNING": False,  # it would pin the thread that times the other sides too
        }
        if precision is not None:
            settings["INFERENCE_PRECISION_HINT"] = precision
        return openvino.Core().compile_model(str(path), "CPU", settings)

    alone = compiled(1)
    request = alone.create_infer_request()
    computes = alone.get_property("INFERENCE_PRECISION_HINT").get_type_name()

    def run(inputs: Feeds) -> Vectors:
        tokens = request.infer(inputs, share_inputs=True, share_outputs=True)[0]
        return pool(tokens, inputs["attention_mask"])

    note = f"precision hint {computes}, dynamic shapes"
    if threads == 1:
        return Side(name=name, run=run, model_bytes=bytes_of(path), note=note)
    queue = openvino.AsyncInferQueue(compiled(threads), threads)
    found: dict[int, Vectors] = {}

    def done(request: Any, job: tuple[int, NDArray[np.int64]]) -> None:
        found[job[0]] = pool(request.get_output_tensor(0).data, job[1])

    queue.set_callback(done)

    def run_many(batches: list[Feeds]) -> list[Vectors]:
        for i, batch in enumerate(batches):
            queue.start_async(batch, (i, batch["attention_mask"]), share_inputs=True)
        queue.wait_all()
        return [found[i] for i in range(len(batches))]

    return Side(name=name, run=run, model_bytes=bytes_of(path), note=note, run_many=run_many)


def torch_sides(checkpoint: str, threads: int, *, compiled: bool) -> tuple[list[Side], dict[str, str]]:
    """Eager PyTorch, which is also the reference, and inductor; the second is absent where no C++ compiler works."""
    import torch

    torch.set_num_threads(threads)
    module = load_torch(checkpoint)
    size = sum(p.numel() * p.element_size() for p in module.parameters())

    def runner(forward: Any) -> Callable[[Feeds], Vectors]:
        def run(inputs: Feeds) -> Vectors:
            with torch.inference_mode():
                tokens = forward(*(torch.from_numpy(inputs[key]) for key in INPUT_NAMES)).numpy()
            return pool(tokens, inputs["attention_mask"])

        return run

    sides = [Side(name="torch eager fp32", run=runner(module), model_bytes=size)]
    if not compiled:
        return sides, {}
    run = runner(torch.compile(module, dynamic=True))
    try:
        run(feeds([(101, 2000, 102), (101, 2000, 2001, 102)]))
        run(feeds([(101, 2000, 2001, 102)]))
    except Exception as error:  # whatever the compiler's tool chain raises is the row's reason
        return sides, {"torch compiled fp32": reason(error)}
    return [*sides, Side(name="torch compiled fp32", run=run, model_bytes=size, note="inductor, dynamic=True")], {}


def peer_sides(artifacts: Artifacts, threads: int, wanted: Sequence[str] = ()) -> tuple[list[Side], dict[str, str]]:
    """Every peer that exists, the baseline first, and the reasons of the others.

    ``wanted``: of the peers only these, beside the baseline and eager PyTorch; all if it is empty.
    """
    models = {name: Path(path) for name, path in artifacts.models.items()}
    absent = dict(artifacts.absent)
    sides = [onnxruntime_side(BASELINE, models[BASELINE], threads)]
    plans: list[tuple[str, str, Callable[[str, Path], Side]]] = [
        (name, name, lambda name, path: onnxruntime_side(name, path, threads))
        for name in ("onnxruntime quantize_dynamic", "optimum avx512_vnni")
    ]
    plans += [
        ("openvino f32", "openvino", lambda name, path: openvino_side(name, path, threads, "f32")),
        ("openvino bf16", "openvino", lambda name, path: openvino_side(name, path, threads, "bf16")),
        ("openvino nncf int8", "openvino nncf int8", lambda name, path: openvino_side(name, path, threads, None)),
    ]
    for name, model, make in plans:
        if model not in models or (wanted and name not in wanted):
            continue
        try:
            sides.append(make(name, models[model]))
        except Exception as error:  # as above: a row, not a crash
            absent[name] = reason(error)
    compiled = not wanted or "torch compiled fp32" in wanted
    torch_peers, torch_absent = torch_sides(artifacts.checkpoint, threads, compiled=compiled)
    return sides + torch_peers, absent | torch_absent
