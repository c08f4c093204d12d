"""Quantization-aware training: the forward pass rounds values as `quantize` will, and the gradient ignores the rounding
(straight-through estimator, arXiv 1308.3432).

Block-wise weights use the scales of the export's own search. The search tries ten ranges per block, too slow for each
step, so scales are kept until :meth:`Rounding.refresh`. Activations use the extremes of their batch. Two parts are left
to the export: smoothing of activations, which only helps, and int8 inputs of weight-only products, whose error is small
next to that of 4-bit weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional

from edgecompress.errors import RecipeError
from edgecompress.graph.blocks import BlockFormat
from edgecompress.graph.linears import MIN_TABLE_ELEMENTS
from edgecompress.quantize.blockwise import into_blocks, search_scales
from edgecompress.quantize.weights import SMALLEST_BLOCK, block_that_divides
from edgecompress.types.distill import INT8_PER_TENSOR, NO_ROUNDING
from edgecompress.types.precision import INT4_WEIGHTS, INT8_WEIGHTS

_BITS = {INT4_WEIGHTS: 4, INT8_WEIGHTS: 8}
_ROWS = 256  # of a weight per search: the temporaries fit into the CPU cache


def straight_through(rounded: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The value of ``rounded`` with the gradient of ``x``."""
    return x + (rounded - x).detach()


def round_rows(weight: torch.Tensor, *, per_tensor: bool = False) -> torch.Tensor:
    """Symmetric int8 of [N, K] with one scale per output, like :func:`per_column_int8`, or one per tensor."""
    largest = weight.detach().abs().amax() if per_tensor else weight.detach().abs().amax(1, keepdim=True)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return straight_through(torch.round(weight.detach() / scale).clamp(-127, 127) * scale, weight)


def round_activation(x: torch.Tensor) -> torch.Tensor:
    """uint8 with one scale and zero point from the extremes of the batch; zero is exact."""
    with torch.no_grad():
        low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
        scale = ((high - low) / 255).clamp(min=torch.finfo(x.dtype).tiny)
        zero = torch.round(-low / scale).clamp(0, 255)
        rounded = (torch.clamp(torch.round(x / scale) + zero, 0, 255) - zero) * scale
    return straight_through(rounded, x)


class BlockRounding:
    """Rounds weights [N, K] in blocks along K, with the scales of the last :meth:`refresh`."""

    def __init__(self, form: BlockFormat) -> None:
        self.form = form
        self._scale = torch.zeros(0)

    def refresh(self, weight: torch.Tensor) -> None:
        rows = into_blocks(weight.detach().cpu().numpy().T, self.form)
        found = [search_scales(rows[start : start + _ROWS], self.form)[0] for start in range(0, len(rows), _ROWS)]
        self._scale = torch.cat([torch.from_numpy(part) for part in found]).to(weight.device)

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        rows, width = weight.shape
        blocks = self._scale.shape[1]
        padded = functional.pad(weight, (0, blocks * self.form.block_size - width))
        with torch.no_grad():
            codes = padded.view(rows, blocks, -1) / self._scale
            codes = torch.round(codes).clamp(-self.form.middle, self.form.top - self.form.middle)
            rounded = (codes * self._scale).view(rows, -1)[:, :width]
        return straight_through(rounded, weight)


class Rounding:
    """Rounding of a model's linear layers and embedding tables in a named precision."""

    def __init__(self, model: torch.nn.Module, precision: str, block_size: int, *, blocks_tables: bool) -> None:
        """``blocks_tables``: embedding tables are rounded in blocks if weights are.

        Raises RecipeError if the model has no linear layer.
        """
        self.precision = precision
        self._settings = (block_size, blocks_tables)
        self._linears = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        self._tables = [
            module
            for module in model.modules()
            if isinstance(module, torch.nn.Embedding) and module.weight.numel() >= MIN_TABLE_ELEMENTS
        ]
        if not self._linears:
            raise RecipeError(
                f"the student has no linear layer to round to {precision}", hint="Omit rounding in [training]."
            )
        self._blocks: dict[torch.nn.Module, BlockRounding] = {}
        bits = _BITS.get(precision)
        if bits is not None:
            form = BlockFormat(bits=bits, block_size=block_size)
            self._blocks = {module: BlockRounding(form) for module in self._linears}
            for table in self._tables if blocks_tables else []:
                size = block_that_divides(table.embedding_dim, block_size)
                if size >= SMALLEST_BLOCK:
                    self._blocks[table] = BlockRounding(BlockFormat(bits=bits, block_size=size))

    def of(self, model: torch.nn.Module) -> Rounding:
        """The same rounding for another model of this architecture."""
        block_size, blocks_tables = self._settings
        return Rounding(model, self.precision, block_size, blocks_tables=blocks_tables)

    def refresh(self) -> None:
        """Search the scales again for the current weights."""
        for module, blocks in self._blocks.items():
            blocks.refresh(_weight(module))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model computes with rounded values inside the block; its weights stay float32."""
        self.refresh()
        changed: list[Any] = [*self._linears, *self._tables]
        try:
            for module in changed:
                kind = _Linear if isinstance(module, torch.nn.Linear) else _Table
                module.forward = kind(module, self)
            yield
        finally:
            for module in changed:
                vars(module).pop("forward", None)

    def in_blocks(self, module: torch.nn.Module) -> bool:
        return module in self._blocks

    def weight(self, module: torch.nn.Module) -> torch.Tensor:
        """The rounded weight of a layer."""
        if module in self._blocks:
            return self._blocks[module](_weight(module))
        per_tensor = self.precision == INT8_PER_TENSOR and isinstance(module, torch.nn.Linear)
        return round_rows(_weight(module), per_tensor=per_tensor)

    @property
    def rounds_inputs(self) -> bool:
        return self.precision not in (NO_ROUNDING, *_BITS)


def _weight(module: torch.nn.Module) -> torch.Tensor:
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    return weight


class _Linear:
    def __init__(self, module: torch.nn.Linear, rounding: Rounding) -> None:
        self._module, self._rounding = module, rounding

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        x = round_activation(x) if self._rounding.rounds_inputs else x
        return functional.linear(x, self._rounding.weight(self._module), self._module.bias)


class _Table:
    """Rounds only the rows that are looked up, if each row has its own scale."""

    def __init__(self, module: torch.nn.Embedding, rounding: Rounding) -> None:
        self._module, self._rounding = module, rounding

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        module = self._module
        if self._rounding.in_blocks(module):
            return functional.embedding(ids, self._rounding.weight(module), module.padding_idx)
        found = functional.embedding(ids, module.weight, module.padding_idx)
        return round_rows(found.flatten(0, -2)).view_as(found)
