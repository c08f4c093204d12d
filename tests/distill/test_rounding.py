"""What a student learns under is what `quantize` makes of it: held against the exporter's own arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress.distill.rounding import BlockRounding, Rounding, round_activation, round_rows, straight_through
from edgecompress.errors import RecipeError
from edgecompress.graph.blocks import BlockFormat
from edgecompress.quantize.blockwise import quantize_blocks
from edgecompress.quantize.numerics import fake_quantize_uint8, per_column_int8, range_to_uint8


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [128, 300])
def test_blocks_are_the_exports(bits: int, width: int) -> None:
    weight = rand(300, width)
    form = BlockFormat(bits=bits, block_size=128)
    blocks = BlockRounding(form)
    blocks.refresh(weight)
    expected = quantize_blocks(weight.numpy().T, form).dequantize().T
    np.testing.assert_allclose(blocks(weight).numpy(), expected, rtol=0, atol=1e-6)


def test_columns_are_the_exports() -> None:
    weight = rand(7, 33)
    codes, scale = per_column_int8(weight.numpy().T)
    np.testing.assert_allclose(round_rows(weight).numpy(), (codes * scale).T, atol=1e-6)
    step = weight.abs().max().item() / 127
    whole = round_rows(weight, per_tensor=True) / step
    assert (whole - whole.round()).abs().max() < 1e-4
    assert (round_rows(torch.zeros(2, 3)) == 0).all()


def test_activations_are_the_exports() -> None:
    x = rand(4, 50) + 1
    scale, zero = range_to_uint8(float(x.min()), float(x.max()))
    np.testing.assert_allclose(round_activation(x).numpy(), fake_quantize_uint8(x.numpy(), scale, zero), atol=1e-6)
    assert (round_activation(torch.zeros(3)) == 0).all()


def test_the_gradient_passes() -> None:
    x = rand(3).requires_grad_()
    straight_through(torch.round(x), x).square().sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, 2 * torch.round(x).detach())


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(1024, 64)
        self.linear = torch.nn.Linear(64, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.linear(self.table(ids))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "precision", ["int4-weights", "int8-weights", "int8-dynamic", "int8-static", "int8-per-tensor"]
)
@pytest.mark.parametrize("blocks_tables", [True, False])
def test_a_model_is_rounded_inside_and_itself_outside(precision: str, blocks_tables: bool) -> None:
    torch.manual_seed(0)
    model, ids = Model(), torch.tensor([[1, 2, 3]])
    before, keys = model(ids), list(model.state_dict())
    rounding = Rounding(model, precision, 32, blocks_tables=blocks_tables)
    with rounding.applied():
        inside = model(ids)
        assert list(model.state_dict()) == keys
        inside.sum().backward()
    assert not torch.equal(inside, before)
    assert (inside - before).abs().max() < (0.3 if precision == "int4-weights" else 0.03)
    assert torch.equal(model(ids), before)
    assert model.linear.weight.grad is not None
    assert model.table.weight.grad is not None
    assert model.table.weight.grad[1].abs().sum() > 0


def test_scales_are_those_of_the_last_refresh() -> None:
    model = Model()
    rounding = Rounding(model, "int4-weights", 32, blocks_tables=False)
    with rounding.applied(), torch.no_grad():
        old = rounding.weight(model.linear)
        model.linear.weight.mul_(8)
        stale = rounding.weight(model.linear)
        rounding.refresh()
        fresh = rounding.weight(model.linear)
    torch.testing.assert_close(fresh, old * 8)
    assert stale.abs().max() < fresh.abs().max() / 4


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(RecipeError, match="no linear layer"):
        Rounding(torch.nn.Embedding(3, 4), "int4-weights", 32, blocks_tables=False)


def test_a_students_weights_are_those_of_its_bundle(small_decoder_dir: Path, tmp_path: Path) -> None:
    """A real decoder: what Rounding multiplies by is what the exported graph holds, weight by weight."""
    import onnx_ir as ir

    from edgecompress.capture.model import load_model
    from edgecompress.export.pipeline import export
    from edgecompress.kinds.checkpoints import load_student
    from edgecompress.types.recipe import QualityRecipe, Recipe, RuntimeRecipe, StudentRecipe

    source = StudentRecipe(source=str(small_decoder_dir))
    quality = QualityRecipe(max_kl=10, max_perplexity_ratio=10, samples=4)
    export(
        Recipe(precision="int4-weights", student=source, quality=quality, runtime=RuntimeRecipe(kernels="none")),
        tmp_path / "b",
    )
    model = load_model(load_student(source), "sdpa")
    rounding = Rounding(model, "int4-weights", 128, blocks_tables=True)
    rounding.refresh()
    (graph,) = (ir.load(path).graph for path in (tmp_path / "b").glob("*.onnx"))
    scales = {name: value for name, value in graph.initializers.items() if name.endswith("_scale")}
    modules = dict(model.named_modules())
    checked = 0
    for name, scale in scales.items():
        module = modules.get(name.removesuffix(".weight_scale"))
        if module is not None:  # the others are several layers in one
            mine = rounding._blocks[module]._scale[:, :, 0].numpy()
            np.testing.assert_allclose(scale.const_value.numpy().reshape(mine.shape), mine, err_msg=name)
            checked += 1
    assert checked >= 5
