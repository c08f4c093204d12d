"""The encoder benchmark names its own sides by the bundle's manifest, whatever schema that has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import ours_encoder
from benchmarks.peers_encoder import SPIN_SETTING
from benchmarks.texts_encoder import seen_by_our_export
from edgecompress.formats.manifest import read_manifest, write_manifest
from edgecompress.types.bundle import MODEL, KernelLibrary, ModelRecord, Variant
from tests.serve.encoder_bundle import encoder_bundle


def with_variant(bundle: Path, **changes: object) -> Variant:
    manifest = read_manifest(bundle)
    variant = replace(manifest.variant(), **changes)  # type: ignore[arg-type]
    write_manifest(replace(manifest, models={MODEL: ModelRecord(variants=(variant,))}), bundle)
    return variant


def test_a_bundle_with_kernels_is_no_twin_of_one_without(tmp_path: Path) -> None:
    plain, ours = encoder_bundle(tmp_path / "plain"), encoder_bundle(tmp_path / "ours")
    with_variant(ours, kernels=KernelLibrary(path="kernels.so", isa="x86-64-v3", weights="weights.json"))
    assert ours_encoder.bundle_kind(plain) == "fp32"
    assert ours_encoder.bundle_kind(ours) == "fp32 with kernels"


def test_a_side_gives_the_vectors_of_the_runtime(tmp_path: Path) -> None:
    bundle = encoder_bundle(tmp_path / "b")
    with pytest.raises(RuntimeError, match="spin when idle"):
        ours_encoder.our_side(bundle, 1)
    runtime = replace(read_manifest(bundle).variant().runtime, session_config=dict([SPIN_SETTING]))
    with_variant(bundle, runtime=runtime)
    side = ours_encoder.our_side(bundle, 1, " twice")
    assert side.name == "edgecompress fp32 twice"
    feed = {"input_ids": np.array([[1, 2, 3]]), "attention_mask": np.ones((1, 3), dtype=np.int64)}
    assert side.encode is not None
    np.testing.assert_allclose(side.encode([(1, 2, 3)]), side.run(feed), atol=1e-6)


def test_the_texts_of_an_export_are_known() -> None:
    assert len(seen_by_our_export()) > 10_000
