"""What lineage costs an export, hashing apart, and how fast a bundle is hashed, signed and verified.

    python -m benchmarks.bench_lineage --work DIR [--gigabytes 1.0] [--rounds 5]

The checkpoint and the bundle have the files and the sizes of a 1.5 B decoder's in int4, of random bytes: no figure
depends on the values of weights. The kinds of rows:

- ``overhead``: collecting a checkpoint's lineage and writing the bundle's documents, when every hash is known;
- ``hash``: the bundle's largest file with several methods, in turn, warm in the page cache; rates in GB/s, and in GB
  per second of CPU time, which other work on the machine changes little;
- ``disk``: the same file, read only and hashed, each after it was dropped from the cache;
- ``bundle``: ``open_bundle``, ``sign`` and ``verify`` over everything.

Rows go to benchmarks/results/lineage.jsonl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import model_signing.hashing
import numpy as np

from benchmarks.result_lines import RESULTS, header, write
from edgecompress.capture.checkpoint import hashes
from edgecompress.export.bundle import write_bundle
from edgecompress.formats import codec
from edgecompress.formats.manifest import file_sha256, open_bundle
from edgecompress.lineage.collect import Checkpoint, collect
from edgecompress.lineage.documents import documents
from edgecompress.lineage.policy import check
from edgecompress.lineage.signature import sign, verify
from edgecompress.types.bundle import MODEL, Manifest, ModelRecord, RuntimeSettings, TargetRecord, TensorSpec, Variant
from edgecompress.types.provenance import ProvenanceRecipe
from edgecompress.types.recipe import Recipe
from edgecompress.types.report import Fidelity, Measurements, Report

_LAYERS = 28
_CHUNK_BYTES = 1 << 20
_SHARD_BYTES = 64 << 20
CARD = "---\nlicense: mit\nbase_model: Qwen/Qwen2.5-Math-1.5B\ndatasets:\n- a/b\n---\n# a student\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True, help="a folder on the disk that is measured")
    parser.add_argument(
        "--gigabytes", type=float, default=1.0, help="size of the bundle's weights; the checkpoint has 3 times"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "lineage.jsonl")
    options = parser.parse_args()
    work = options.work / "bench-lineage"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        rows = list(_rows(work, int(options.gigabytes * 1e9), options.rounds))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    about = {"gigabytes": options.gigabytes, "rounds": options.rounds, "layers": _LAYERS}
    write(options.out, [header(**about), *rows])
    for row in rows:
        print(json.dumps(row))


def _rows(work: Path, size: int, rounds: int) -> Iterator[dict[str, Any]]:
    student, bundle = work / "student", work / "b.bundle"
    _random_file(student / "model.safetensors", size)
    (student / "README.md").write_text(CARD)
    (student / "config.json").write_text("{}")
    (student / "LICENSE").write_text("terms\n" * 200)
    _random_file(work / "weights", size)
    yield from _overhead(student, work, bundle, rounds)
    data = bundle / "model.onnx.data"
    yield from _hashing(data, rounds)
    yield from _disk(data, rounds)
    yield from _whole(bundle, work, rounds)


def _overhead(student: Path, work: Path, bundle: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """What an export does for the lineage, in the same calls; the hashes are made before."""
    files = hashes(student)
    checkpoint = Checkpoint(source=str(student), path=student, revision=None, files=files)
    declared = ProvenanceRecipe(status="permitted", teacher="ours", terms_url="https://example.org/terms")
    manifest, report = _manifest(), _report()
    contents: dict[str, Path | str | bytes] = {
        "model.onnx": b"0" * 2_000_000,
        "model.onnx.data": work / "weights",
        "tokenizer.json": b"1" * 7_000_000,
        "report.json": codec.dumps(report),
    }
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        found = collect(checkpoint, declared)
        check(found.lineage, "warn")
        text = codec.dumps(found.lineage)
        closing = documents(manifest, report, found.lineage, Recipe(provenance=declared))
        seconds.append(time.perf_counter() - began)
    files_in = {**contents, "lineage.json": text, **found.notices}
    written = write_bundle(
        bundle, manifest_without_files=manifest, files=files_in, measurements=_MEASURED, force=True, closing=closing
    )
    for place in range(rounds):
        began = time.perf_counter()
        made = closing(written.files)
        seconds[place] += time.perf_counter() - began
    sizes = {name: len(text) for name, text in made.items()}
    yield {"kind": "overhead", **_spread(seconds, "seconds"), "documents_bytes": sizes, "aim_seconds": 2.0}


def _hashing(path: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """In turn, so that what others do on the machine falls on all of them."""
    ways: dict[str, Callable[[Path], object]] = {
        "hashlib.sha256, chunks of 1 MiB": _plain_sha256,
        "file_sha256 (ours)": file_sha256,
        "model_signing, files, sha256": lambda p: _model_signing().use_file_serialization().hash(p),
        "model_signing, shards of 64 MiB, sha256": lambda p: (
            _model_signing().use_shard_serialization(shard_size=_SHARD_BYTES).hash(p)
        ),
        "model_signing, files, blake3": lambda p: (
            _model_signing().use_file_serialization(hashing_algorithm="blake3").hash(p)
        ),
    }
    _read(path)  # into the page cache
    size = path.stat().st_size
    rates: dict[str, list[float]] = {name: [] for name in ways}
    computing: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began, used = time.perf_counter(), time.process_time()
            way(path)
            rates[name].append(size / (time.perf_counter() - began) / 1e9)
            computing[name].append(size / (time.process_time() - used) / 1e9)
    base = rates["hashlib.sha256, chunks of 1 MiB"]
    for name, measured in rates.items():
        ratio = statistics.median(ours / theirs for ours, theirs in zip(measured, base, strict=True))
        figures = _spread(measured, "gb_per_s") | _spread(computing[name], "gb_per_cpu_s")
        yield {"kind": "hash", "way": name, **figures, "over_hashlib": round(ratio, 3)}


def _disk(path: Path, rounds: int) -> Iterator[dict[str, Any]]:
    size = path.stat().st_size
    ways: dict[str, Callable[[Path], object]] = {"read": _read, "file_sha256 (ours)": file_sha256}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            _forget(path)
            began = time.perf_counter()
            way(path)
            rates[name].append(size / (time.perf_counter() - began) / 1e9)
    for name, measured in rates.items():
        yield {"kind": "disk", "way": name, **_spread(measured, "gb_per_s")}


def _whole(bundle: Path, work: Path, rounds: int) -> Iterator[dict[str, Any]]:
    private, public = _keys(work)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    ways: Mapping[str, Callable[[], object]] = {
        "open_bundle": lambda: open_bundle(bundle),
        "sign": lambda: sign(bundle, private, force=True),
        "verify": lambda: verify(bundle, public),
    }
    for name, way in ways.items():
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - began)
        rate = round(size / statistics.median(seconds) / 1e9, 3)
        yield {"kind": "bundle", "what": name, "bytes": size, **_spread(seconds, "seconds"), "gb_per_s_median": rate}


def _spread(values: list[float], unit: str) -> dict[str, float]:
    return {
        f"{unit}_p50": round(statistics.median(values), 4),
        f"{unit}_least": round(min(values), 4),
        f"{unit}_most": round(max(values), 4),
    }


def _model_signing() -> Any:
    config: Any = model_signing.hashing.Config
    return config()


def _plain_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _read(path: Path) -> None:
    buffer = bytearray(_CHUNK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def _forget(path: Path) -> None:
    """Out of the page cache; what is not written yet stays, so it is written first."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _random_file(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, size, 1 << 24):
            file.write(rng.bytes(min(1 << 24, size - start)))


def _keys(work: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = work / "private.pem", work / "public.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def _manifest() -> Manifest:
    past = tuple(
        TensorSpec(name=f"past_key_values.{layer}.{side}", dtype="float32", shape=("batch", 2, "past", 128))
        for layer in range(_LAYERS)
        for side in ("key", "value")
    )
    variant = Variant(
        backend="onnxruntime-cpu",
        path="model.onnx",
        inputs=(TensorSpec(name="input_ids", dtype="int64", shape=("batch", "tokens")), *past),
        outputs=tuple(replace(spec, name=spec.name.replace("past_key_values", "present")) for spec in past),
        runtime=RuntimeSettings(threads=1, graph_optimization="disabled"),
        providers=("CPUExecutionProvider",),
    )
    return Manifest(
        tool_version="0",
        name="student",
        kind="decoder",
        task="text-generation",
        architecture="qwen2",
        precision="int4-weights",
        target=TargetRecord(name="local", arch="x86_64", isa=()),
        models={MODEL: ModelRecord(variants=(variant,))},
    )


def _report() -> Report:
    return Report(fidelity=Fidelity(samples=1, mean_kl=0.0), held_out_text="none")


_MEASURED = Measurements(manifest_sha256="")


if __name__ == "__main__":
    main()
