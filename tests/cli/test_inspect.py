"""What `edgecompress inspect` says of models, of the ways to run them, and of a KV cache."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edgecompress.cli.inspect import _models
from edgecompress.formats.manifest import read_manifest
from edgecompress.kinds import find_kind
from edgecompress.types.bundle import MODEL, Manifest, ModelRecord, TensorSpec, with_variant
from edgecompress.types.report import Fidelity, Report
from tests.decoder_bundle import decoder_bundle

REPORT = Report(fidelity=Fidelity(samples=1))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return read_manifest(decoder_bundle(tmp_path_factory.mktemp("d") / "b"))


def with_cache(manifest: Manifest, dtype: str, capacity: str | int) -> Manifest:
    """Of one layer, 2 heads of 16 for keys and for values."""
    sides = ("key", "value")
    past = tuple(
        TensorSpec(name=f"past_key_values.0.{side}", dtype=dtype, shape=("B", 2, capacity, 16)) for side in sides
    )
    variant = manifest.variant()
    return with_variant(manifest, replace(variant, inputs=(*variant.inputs, *past)))


@pytest.mark.parametrize(("dtype", "size"), [("float32", 256), ("float16", 128), ("int8", 64)])
@pytest.mark.parametrize("capacity", ["capacity", 320])
def test_a_cache_takes_what_its_dtype_takes(manifest: Manifest, dtype: str, size: int, capacity: str | int) -> None:
    rows = find_kind(manifest.kind).inspect.rows(with_cache(manifest, dtype, capacity), REPORT)
    assert rows == (("KV cache", f"{dtype}, {size} bytes per token"),)


def test_one_model_needs_no_heading(manifest: Manifest) -> None:
    assert [line.partition(" ")[0] for line in _models(manifest)] == ["inputs", "outputs", "runtime"]


def test_several_models_and_variants_are_told_apart(manifest: Manifest) -> None:
    one = manifest.variant()
    both = ModelRecord(variants=(one, replace(one, path="other.onnx")))
    lines = list(_models(replace(manifest, models={"encoder": manifest.models[MODEL], "decoder": both})))
    assert lines[0] == "model     encoder"
    assert lines[4:6] == ["model     decoder", "variant   1 of 2: model.onnx"]
    assert lines[9] == "variant   2 of 2: other.onnx"
