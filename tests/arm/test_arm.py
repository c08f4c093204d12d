"""The kernels for aarch64, really run: inside onnxruntime of an emulated machine (``make test-arm`` sets it up).

The emulator's CPU has no more than the kernels were compiled for, so an instruction too many would end the process.
Outputs are held against float64, and against what this machine's kernels give: they are the same, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgecompress_kernels.cpu.build import Attention, Matmul, build
from edgecompress_kernels.cpu.isa import CORTEX_A72, CORTEX_A76, CORTEX_A78, Isa
from edgecompress_kernels.reference import block_weights, quantized_rows

from edgecompress.formats.cpu import host_features
from edgecompress.pipeline import export
from edgecompress.runtime import load
from edgecompress.runtime.generator import Generator
from tests.arm import machine
from tests.kernels.ops import attention_model, best_isa, matmul_model, session
from tests.kernels.test_attention import expected_of, feeds_of
from tests.kernels.test_blockwise import laid_out, weights_of
from tests.test_kernels_export import recipe

pytestmark = pytest.mark.skipif(not machine.ready(), reason="no aarch64 machine: `make test-arm` sets one up")
CPUS = {CORTEX_A72: "cortex-a72", CORTEX_A76: "cortex-a76", CORTEX_A78: "neoverse-n1"}  # qemu 7.2 has no cortex-a78
MATMULS = (
    Matmul(bits=4, block=32),
    Matmul(bits=4, block=64, zero_points=True),
    Matmul(bits=8, block=32, zero_points=True),
    Matmul(bits=8, block=128),
)
SHAPES = (  # tokens, past, window, head size, turned
    (1, 37, -1, 64, 64),
    (1, 1100, 600, 80, 64),
    (5, 600, -1, 64, 0),
    (40, 0, 9, 80, 0),
)
HEADS, KV_HEADS = 6, 2
WANTED = (MATMULS, tuple(Attention(head_size=size) for size in (64, 80)))


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, tuple[Any, float]]]:
    """Models and feeds in a folder, and name -> (expected output in float64, tolerance)."""
    folder, expected = tmp_path_factory.mktemp("cases"), {}
    rng = np.random.default_rng(7)
    for kind in MATMULS:
        k, n, rows = 3 * kind.block, 37, 7  # four rows, two and one
        packed, scales, zeros = weights_of(kind, n, k, rng)
        packed[0], packed[1] = 255, 0
        x = rng.standard_normal((rows, k)).astype(np.float32)
        x[0], x[1] = 1, -1  # products as large as they can be, all of one sign
        name = f"{kind.name}"
        (folder / f"{name}.onnx").write_bytes(matmul_model(kind, laid_out(kind, packed, scales, zeros), k, n))
        np.savez(folder / f"{name}.npz", x=x)
        right = quantized_rows(x, kind.block) @ block_weights(packed, scales, zeros, kind.bits).T
        expected[name] = right, 2e-6 * max(1.0, float(np.abs(right).max()))
    for tokens, past, window, size, rotary in SHAPES:
        name = f"attention_{size}_{tokens}_{past}"
        feeds = feeds_of(rng, 1, tokens, [past], HEADS, KV_HEADS, size, rotary)
        model = attention_model(heads=HEADS, kv_heads=KV_HEADS, size=size, rotary=rotary, window=window)
        (folder / f"{name}.onnx").write_bytes(model)
        np.savez(folder / f"{name}.npz", **feeds)
        expected[name] = expected_of(feeds, [past], HEADS, KV_HEADS, size, window)[0], 3e-6
    return folder, expected


@pytest.fixture(scope="module")
def here(cases: tuple[Path, dict[str, tuple[Any, float]]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Name -> what this machine's own kernels give; empty if there are none for it."""
    isa = best_isa(host_features())
    if isa is None:
        return {}
    library = tmp_path_factory.mktemp("here") / "kernels.so"
    library.write_bytes(build(*WANTED, isa))
    found = {}
    for path in cases[0].glob("*.onnx"):
        with np.load(path.with_suffix(".npz")) as feeds:
            found[path.stem] = session(path.read_bytes(), library, 2).run(["y"], dict(feeds))[0]
    return found


@pytest.fixture(scope="module", params=CPUS, ids=lambda isa: isa.name)
def library(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Isa, Path]:
    path = tmp_path_factory.mktemp("library") / "kernels.so"
    path.write_bytes(build(*WANTED, request.param))
    return request.param, path


def test_outputs_are_those_of_float64_and_of_every_other_cpu(
    library: tuple[Isa, Path], cases: tuple[Path, dict[str, tuple[Any, float]]], here: dict[str, Any]
) -> None:
    isa, path = library
    folder, expected = cases
    done = machine.run(CPUS[isa], [Path(__file__).with_name("driver.py"), path, folder])
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (right, tolerance) in expected.items():
        with np.load(folder / f"{name}.out.npz") as outputs:
            found = outputs["y"]
        np.testing.assert_allclose(found, right, rtol=0, atol=tolerance, err_msg=name)
        if here:
            assert np.array_equal(found, here[name]), name
        (folder / f"{name}.out.npz").unlink()


def test_a_cpu_without_dot_products_refuses_the_library_that_needs_them(
    library: tuple[Isa, Path], cases: tuple[Path, dict[str, tuple[Any, float]]]
) -> None:
    isa, path = library
    if isa is not CORTEX_A76:
        pytest.skip("one refusal is enough")
    done = machine.run("cortex-a72", [Path(__file__).with_name("driver.py"), path, cases[0]])
    assert "these kernels are for cortex-a76, and this CPU lacks asimddp" in done.stderr + done.stdout


@pytest.mark.skipif(best_isa(host_features()) is None, reason="no kernel for this machine's CPU")
def test_a_bundle_for_a_raspberry_pi_gives_its_text_there(small_decoder_dir: Path, tmp_path: Path) -> None:
    prompt, options = "The import statement", ["--max-new-tokens", "12", "--temperature", "0", "--json"]
    for target in ("raspberry-pi-5", "local"):
        export(recipe(small_decoder_dir, "matmul,attention", target=target), tmp_path / target)
    done = machine.run("cortex-a76", ["-m", "edgecompress", "run", tmp_path / "raspberry-pi-5", prompt, *options])
    assert done.returncode == 0, done.stderr[-2000:]
    with load(tmp_path / "local") as generator:
        assert isinstance(generator, Generator)
        expected = generator.generate(prompt, max_new_tokens=12, temperature=0.0)
    assert json.loads(done.stdout)["token_ids"] == list(expected.token_ids)
    other = machine.run("cortex-a72", ["-m", "edgecompress", "run", tmp_path / "raspberry-pi-5", prompt, *options])
    assert other.returncode == 3
    assert "this CPU lacks asimddp, asimdhp" in other.stderr
