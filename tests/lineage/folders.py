"""Checkpoints that are only looked at, bundles that are only hashed, and keys."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from edgecompress.capture.checkpoint import hashes
from edgecompress.export.bundle import write_bundle
from edgecompress.formats.codec import dumps
from edgecompress.lineage.collect import Checkpoint, LineageFiles, collect
from edgecompress.lineage.documents import documents
from edgecompress.types.distill import DataRecord, Distillation, DistillRecipe, TeacherRecord
from edgecompress.types.provenance import ProvenanceRecipe
from edgecompress.types.recipe import Recipe
from edgecompress.types.report import Fidelity, Measurements, Report
from tests.test_bundle import MANIFEST

NOTHING = ProvenanceRecipe()
REPORT = Report(fidelity=Fidelity(samples=2, mean_cosine=0.5), held_out_text="two texts")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def checkpoint(folder: Path, card: str | None = None, weights: bytes = b"weights") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def collected(folder: Path, recipe: ProvenanceRecipe = NOTHING) -> LineageFiles:
    return collect(Checkpoint(source=str(folder), path=folder, revision=None, files=hashes(folder)), recipe)


def record(
    folder: Path,
    teacher: TeacherRecord,
    weights: Mapping[str, str] | None = None,
    provenance: ProvenanceRecipe = NOTHING,
    recipe: DistillRecipe | None = None,
    start: TeacherRecord | None = None,
) -> None:
    """Write what ``distill`` would, of the weights that lie in the folder unless others are given."""
    of = {"model.safetensors": sha256((folder / "model.safetensors").read_bytes())} if weights is None else weights
    made = Distillation(
        tool_version="0.1",
        method="white-box",
        teacher=teacher,
        start=start,
        data=DataRecord(name="texts.jsonl", sha256="5" * 64, examples=3, tokens=9),
        recipe_sha256=sha256(dumps(recipe).encode()) if recipe is not None else "6" * 64,
        seed=0,
        steps=1,
        seconds=1.0,
        versions={},
        weights=of,
        provenance=provenance,
    )
    (folder / "distillation.json").write_text(dumps(made))


def small_bundle(folder: Path, student: Path, recipe: ProvenanceRecipe = NOTHING) -> Path:
    """A bundle with all of its documents and external data, whose model is none."""
    found = collected(student, recipe)
    written: dict[str, Path | str | bytes] = {
        "model.onnx": b"model",
        "model.onnx.data": b"data" * 1000,
        "report.json": dumps(REPORT),
        "lineage.json": dumps(found.lineage),
        **found.notices,
    }
    write_bundle(
        folder,
        manifest_without_files=MANIFEST,
        files=written,
        measurements=Measurements(manifest_sha256=""),
        force=False,
        closing=documents(MANIFEST, REPORT, found.lineage, Recipe(provenance=recipe)),
    )
    return folder


def keys(folder: Path, name: str = "key") -> tuple[Path, Path]:
    """A private and a public one."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public
