"""The table that the C shims, the kernels and the graphs share: header and shims agree with it, or do not compile."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from edgecompress_kernels.cpu import abi, attention, blockwise, rows
from edgecompress_kernels.cpu.abi import CType, Operator, Parameters, Presence
from edgecompress_kernels.cpu.abi_header import header, variant_row
from edgecompress_kernels.cpu.build import SHIMS, SOURCES, link, shim_source
from edgecompress_kernels.cpu.ir import KernelError
from edgecompress_kernels.cpu.isa import CORTEX_A76, X86_64_V3, Isa

from tests.kernels.encoder_ops import layer_model as encoder_model
from tests.kernels.encoder_ops import random_layer
from tests.kernels.layer_ops import joined, layer_model
from tests.kernels.ops import ENCODERS, MATMULS, attention_model, matmul_model
from tests.kernels.test_blockwise import laid_out, weights_of

NO_KERNELS = ".text\n" + "".join(f".globl {name}\n.hidden {name}\n{name}:\n" for name in abi.ROW_KERNELS)


def link_shims(isa: Isa) -> bytes:
    """A library whose tables have no kernel: nothing but the shims is compiled."""
    tables: dict[str, list[str]] = {table: [] for variants in abi.VARIANTS for table in variants.tables}
    return link(NO_KERNELS, shim_source(abi.ROW_KERNELS, tables, isa), isa)


def changed(operator: Operator, side: str, index: int, **changes: Any) -> Operator:
    tensors = list(getattr(operator, side))
    tensors[index] = replace(tensors[index], **changes)
    return replace(operator, **{side: tuple(tensors)})


@pytest.mark.parametrize("isa", [X86_64_V3, CORTEX_A76], ids=lambda isa: isa.name)
def test_the_shims_agree_with_the_table(isa: Isa) -> None:
    assert link_shims(isa)


@pytest.mark.parametrize(
    ("operator", "message"),
    [
        (changed(abi.MATMUL, "inputs", 3, presence=Presence.REQUIRED), "input 3, zeros, is UINT8 and REQUIRED"),
        (changed(abi.INT8_ATTENTION, "inputs", 4, element=abi.ElementType.FLOAT), "input 4, past_value, is FLOAT"),
        (changed(abi.ENCODER_LAYER, "outputs", 1, element=abi.ElementType.INT8), "output 1, projections, is INT8"),
        (replace(abi.PACK_TOKENS, outputs=abi.PACK_TOKENS.outputs[:1]), "PackTokens has 1 outputs"),
        (replace(abi.MATMUL, inputs=abi.MATMUL.inputs[:-1]), "all inputs are read"),
        (replace(abi.SUM_TOKENS, symbol="SUM"), "undeclared identifier 'SUM_TOKENS"),
    ],
    ids=["presence", "input-type", "output-type", "outputs", "inputs", "symbol"],
)
def test_an_operator_that_differs_does_not_compile(
    operator: Operator, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {o.name: o for o in abi.OPERATORS}
    monkeypatch.setattr(abi, "OPERATORS", tuple({**known, operator.name: operator}.values()))
    with pytest.raises(KernelError, match=message):
        link_shims(X86_64_V3)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([m for m in abi.ROWS_PARAMETERS.members if m[0] != "columns"], "'columns' does not refer to any field"),
        (
            [(name, CType.FLAG if name == "width" else ctype) for name, ctype in abi.ROWS_PARAMETERS.members],
            "kernels read 8 bytes at 24 as RowsParameters.width",
        ),
    ],
    ids=["missing", "narrow"],
)
def test_parameters_that_differ_do_not_compile(
    members: Sequence[tuple[str, CType]], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = tuple(replace(p, members=tuple(members)) if p is abi.ROWS_PARAMETERS else p for p in abi.PARAMETERS)
    monkeypatch.setattr(abi, "PARAMETERS", changed)
    with pytest.raises(KernelError, match=message):
        link_shims(X86_64_V3)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_each_shim_compiles_alone(path: Path, tmp_path: Path) -> None:
    (tmp_path / "abi.h").write_text(header())
    command = [sys.executable, "-m", "ziglang", "cc", "-c", "-o", "alone.o", "-Wall", "-Werror"]
    command += [
        "-Wno-undefined-internal",
        "-Wno-unused-function",
        "-Wno-unused-variable",
        "-target",
        X86_64_V3.zig,
        "-I",
        str(SHIMS),
        "-I",
        ".",
    ]
    done = subprocess.run([*command, str(path)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("module", "parameters"),
    [
        (rows, abi.ROWS_PARAMETERS),
        (blockwise, abi.MATMUL_PARAMETERS),
        (attention, abi.ATTENTION_PARAMETERS),
    ],
    ids=["rows", "blockwise", "attention"],
)
def test_kernels_read_each_parameter_by_its_name(module: ModuleType, parameters: Parameters) -> None:
    assert {name: getattr(module, name.upper()) for name in parameters.names} == parameters.offsets


def test_a_row_has_the_members_of_its_table() -> None:
    row = variant_row(abi.ATTENTION_VARIANTS, size=64, append="a", attend="b", combine="c")
    assert row == "{.size = 64, .append = a, .attend = b, .combine = c}"
    with pytest.raises(ValueError, match="Attention has the members size, append, attend, combine"):
        variant_row(abi.ATTENTION_VARIANTS, size=64, append="a")


def graphs() -> list[bytes]:
    rng = np.random.default_rng(0)
    kind, encoder = MATMULS[0], ENCODERS[0]
    packed, scales, zeros = weights_of(kind, 16, kind.block, rng)
    layers = [layer_model(rng, int8=int8) for int8 in (False, True)]
    return [
        matmul_model(kind, laid_out(kind, packed, scales, zeros), kind.block, 16),
        *(attention_model(heads=2, kv_heads=1, size=64, rotary=64, int8=int8) for int8 in (False, True)),
        *(model.SerializeToString() for layer in layers for model in (layer, joined(layer))),
        encoder_model(encoder, random_layer(encoder, rng, smooth=True), smooth=True),
    ]


def test_graphs_use_operators_as_the_table_has_them() -> None:
    operators, used = {operator.name: operator for operator in abi.OPERATORS}, set()
    for node in (node for model in graphs() for node in onnx.load_from_string(model).graph.node):
        if node.domain != "edgecompress":
            continue
        operator = operators[node.op_type]
        used.add(node.op_type)
        assert {attribute.name for attribute in node.attribute} == set(operator.attributes)
        assert len(node.output) <= len(operator.outputs)
        required = [t for t in operator.inputs if t.presence is Presence.REQUIRED]
        given = {tensor.name for tensor, name in zip(operator.inputs, node.input, strict=False) if name}
        assert {tensor.name for tensor in required} <= given
        assert len(node.input) <= len(operator.inputs) or operator.inputs[-1].presence is Presence.VARIADIC
    assert used == set(operators) - {"PackTokens", "SumTokens", "UnpackTokens"}


def test_the_table_costs_an_importer_nothing() -> None:
    heavy = {"numba", "llvmlite", "numpy", "ziglang"}
    script = f"import sys, edgecompress_kernels.cpu.abi; print(sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
