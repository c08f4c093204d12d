"""Bundles with schema 1 of the manifest still load and give the same results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecompress.cli import main
from edgecompress.errors import BundleError
from edgecompress.formats.manifest import open_bundle, read_measurements, read_report, sidecar
from edgecompress.loading import load

FOLDER = Path(__file__).parent / "schema_1"

# What the version that wrote them answered.
SCORES = {"LABEL_0": 0.482675, "LABEL_1": 0.263366, "LABEL_2": 0.253959}
TOKENS = (110,) * 8


def test_an_encoder_answers_as_it_did() -> None:
    with load(FOLDER / "encoder", allow_mismatch=True) as encoder:
        (rows,) = encoder.predict(["the cat sat on the mat"])
    assert {row["label"]: row["score"] for row in rows} == pytest.approx(SCORES, abs=1e-4)


def test_a_decoder_answers_as_it_did() -> None:
    with load(FOLDER / "decoder", allow_mismatch=True) as generator:
        assert generator.generate("the cat sat", max_new_tokens=8, temperature=0.0).token_ids == TOKENS


@pytest.mark.parametrize(("name", "kind"), [("encoder", "encoder"), ("decoder", "decoder")])
def test_the_manifest_is_read_as_schema_2(name: str, kind: str) -> None:
    manifest, folder = open_bundle(FOLDER / name)
    assert (manifest.schema_version, manifest.kind, list(manifest.models)) == (2, kind, ["model"])
    variant = manifest.variant()
    assert (variant.backend, variant.path) == ("onnxruntime-cpu", "model.onnx")
    assert variant.providers == ("CPUExecutionProvider",)
    assert set(manifest.settings) == {"encoder": {"text", "labels"}, "decoder": {"text", "generation"}}[kind]
    assert read_report(folder).fidelity.samples > 0
    assert read_measurements(folder) is not None


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_every_command_that_reads_a_bundle_reads_it(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(FOLDER / name), "--allow-mismatch"]) == 0
    assert main(["inspect", str(FOLDER / name)]) == 0
    assert main(["run", str(FOLDER / name), "the cat sat", "--allow-mismatch"]) == 0
    assert "verified" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unheard_of": 1}, "unknown key 'unheard_of'"),
        ({"text": None, "generation": None, "image": None}, "settings for neither text nor images"),
        ({"target": 5}, "not valid"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    data = json.loads((FOLDER / "encoder" / "manifest.json").read_text(encoding="utf-8")) | change
    content = json.dumps(data).encode()
    (tmp_path / "manifest.json").write_bytes(content)
    (tmp_path / "manifest.json.sha256").write_text(sidecar("manifest.json", content), encoding="utf-8")
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path)
