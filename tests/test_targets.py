"""Targets are valid data with sources, and errors name what a target does not support."""

from __future__ import annotations

import struct
from dataclasses import fields
from pathlib import Path

import pytest

from edgecompress.errors import RecipeError, UnknownTargetError
from edgecompress.export.pipeline import export
from edgecompress.formats.cpu import _arm_features, host_features
from edgecompress.targets import detect, find_target, known_targets, require_backend, require_precision
from edgecompress.types.recipe import CalibrationRecipe, QualityRecipe, Recipe, StudentRecipe
from tests.tiny import tiny_checkpoint

FIGURES = {
    "cores",
    "memory_bytes",
    "memory_bandwidth_bytes_per_s",
    "l2_cache_bytes",
    "l3_cache_bytes",
    "peak_ops_per_s",
    "compute_capability",
    "power_mode",
}
EXPECTED = {
    "x86-64-avx2", "x86-64-avx512-vnni", "x86-64-amx", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin-nano-8gb",
    "jetson-agx-orin", "jetson-thor", "rtx-3060", "rtx-4090", "rtx-5090", "l4", "a100", "h200",
}  # fmt: skip


def test_all_promised_targets_exist() -> None:
    assert set(known_targets()) == EXPECTED


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_every_figure_has_a_source(name: str) -> None:
    target = find_target(name)
    assert target.name == name
    for field in fields(target):
        if field.name in FIGURES and getattr(target, field.name) not in (None, {}):
            assert target.sources.get(field.name, "").startswith("https://"), field.name
    assert set(target.sources) <= {field.name for field in fields(target)}


def test_a_custom_target_file(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    text = known_targets()["raspberry-pi-5"].read_text().replace('"raspberry-pi-5"', '"my-board"', 1)
    path.write_text(text)
    assert find_target(str(path)).cores == 4
    path.write_text(text.replace("cores = 4", 'cores = "four"'))
    with pytest.raises(UnknownTargetError, match="'cores' must be int, not str"):
        find_target(str(path))
    path.write_text(text + "\n[surprise]\n")
    with pytest.raises(UnknownTargetError, match="unknown key 'surprise'"):
        find_target(str(path))


def test_detect_describes_this_machine() -> None:
    target = detect()
    assert (target.cores or 0) >= 1
    assert set(target.isa) == host_features()


def test_features_are_read_from_cpuinfo() -> None:
    assert host_features("processor: 0\nflags : fpu avx2 avx512_vnni nonsense\n") == {"avx2", "avx512_vnni"}
    assert host_features("Features : fp asimd asimddp\n") == {"asimd", "asimddp"}
    assert host_features("") == set()


def test_features_of_aarch64_come_from_auxv(tmp_path: Path) -> None:
    words = tmp_path / "auxv"
    words.write_bytes(struct.pack("<8Q", 6, 4096, 16, 1 << 1 | 1 << 10 | 1 << 20, 26, 1 << 13, 0, 0))
    assert _arm_features(words) == {"asimd", "asimdhp", "asimddp", "i8mm"}
    assert _arm_features(tmp_path / "none") == set()


def test_targets_know_whether_u8s8_saturates() -> None:
    assert find_target("x86-64-avx2").u8s8_saturates
    assert not find_target("x86-64-avx512-vnni").u8s8_saturates
    assert not find_target("raspberry-pi-4").u8s8_saturates


def test_an_unknown_backend_is_refused(tmp_path: Path) -> None:
    assert require_backend(find_target("jetson-thor")) == "tensorrt"
    text = known_targets()["h200"].read_text().replace('"tensorrt", "onnxruntime"', '"tensorrt", "warp"')
    (tmp_path / "h200.toml").write_text(text)
    with pytest.raises(UnknownTargetError, match="backends must be among onnxruntime, tensorrt-rtx, tensorrt"):
        find_target(str(tmp_path / "h200.toml"))


def test_a_precision_the_target_cannot_compute() -> None:
    with pytest.raises(RecipeError, match="does not compute in float16"):
        require_precision(find_target("x86-64-amx"), "fp16")
    require_precision(find_target("h200"), "fp16")


@pytest.mark.slow
def test_auto_ranks_every_precision_that_a_target_computes_in(tmp_path: Path) -> None:
    """A custom target: the Pi 5 with float16."""
    text = (
        known_targets()["raspberry-pi-5"]
        .read_text()
        .replace('computes = ["float32"', 'computes = ["float32", "float16"')
    )
    path = tmp_path / "own.toml"
    path.write_text(text.replace('name = "raspberry-pi-5"', 'name = "own"'))
    assert "float16" in find_target(str(path)).computes
    recipe = Recipe(
        target=str(path),
        student=StudentRecipe(source=str(tiny_checkpoint(tmp_path / "vit", "vit"))),
        quality=QualityRecipe(max_kl=10, min_top1=0, min_fidelity=0.01, samples=4),
        calibration=CalibrationRecipe(samples=4),
    )
    made = export(recipe, tmp_path / "bundle")
    tried = [row.precision for row in made.measurements.candidates]
    assert tried == ["fp32", "fp16", "int8-dynamic", "int8-static", "int8-weights", "int4-weights"]
    assert made.manifest.precision == "int8-dynamic"
