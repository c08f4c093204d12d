"""Replaces ONNX Runtime's ops by our kernels where they are measured to be faster on this target.

The last step of compiling: it replaces nodes, repacks their weights, and builds a library of custom ops for the
target's instruction set. Other ops stay ONNX Runtime's, and the report says why.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress.backends.onnxruntime_cpu.kernel_timing import time_kernels
from edgecompress.errors import RecipeError
from edgecompress.formats.cpu import host_arch, host_features
from edgecompress.graph.model import write_model
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant
from edgecompress.types.bundle import KernelLibrary
from edgecompress.types.graph import Graph
from edgecompress.types.report import KernelUse
from edgecompress.types.target import Target

WEIGHTS = "model.weights.json"
_FASTER = 1.02  # required mean speedup over all shapes, above noise
_NEVER_BELOW = 0.9  # required speedup on each shape
_HOW_TO_MEASURE = "export on the device with --target local to measure it, or name it in --kernels to use it unmeasured"
_LEAST_WEIGHT_BYTES = 1 << 16  # smaller weights are not read into huge pages


@dataclass(frozen=True, kw_only=True)
class KerneledGraph:
    """A graph with our kernels, or the given graph if none are used."""

    graph: Graph
    isa: str
    uses: tuple[KernelUse, ...]

    @property
    def record(self) -> KernelLibrary | None:
        """Its record in the manifest."""
        library = self.graph.library
        return KernelLibrary(path=library.name, isa=self.isa, weights=WEIGHTS) if library is not None else None


@dataclass(frozen=True, kw_only=True)
class Site:
    """A node that a kernel supports; equal for all nodes of the same shape."""

    kernel: str
    what: str
    key: tuple[Any, ...]


def use_kernels(
    graph: Graph, target: Target, wanted: str, threads: int, out_dir: Path, *, measured_here: bool
) -> KerneledGraph:
    """Write ``kernels-<precision>.onnx`` and ``kernels-<isa>.so``, and return that graph, or the given one unchanged.

    If this machine cannot run the target's library, a second one is built for this machine from the same kernels: all
    instruction sets give the same bits, so verifying it here verifies the target's.

    ``wanted``: "auto", "none" or names of KERNELS. Raises RecipeError if a kernel is requested by name but cannot be
    used.
    """
    if wanted == "none":
        return KerneledGraph(graph=graph, isa="", uses=())
    named = names_of(wanted)
    model = ir.load(graph.path)
    sites, refused = _sites(model)
    require_named(named, {site.kernel for site in sites} | {"layer"}, refused)  # layers: decoder_layers.py
    if not sites:
        return KerneledGraph(graph=graph, isa="", uses=refused)
    isa, missing = instruction_set(target)
    if isa is None:
        require_built(named, target, missing)
        stock = [_use(site, nodes, used=False, reason=missing) for site, nodes in sites.items()]
        return KerneledGraph(graph=graph, isa="", uses=(*refused, *stock))
    here = verifying_isa(named, target, isa)
    library = out_dir / f"kernels-{isa.name}.so"
    if measured_here and not named:
        library.write_bytes(_library(list(sites), isa))
    uses = {}
    for site, nodes in sites.items():
        if named:
            used, reason, speedups = on_request(site.kernel, named, measured_here=measured_here)
        elif not measured_here:
            used, reason, speedups = unmeasured(target)
        else:
            used, reason, speedups = by_speed(time_kernels(site.kernel, site.key, threads, library), target)
        uses[site] = _use(site, nodes, used=used, reason=reason, speedups=speedups)
    chosen = {site: nodes for site, nodes in sites.items() if uses[site].used}
    if not chosen:
        return KerneledGraph(graph=graph, isa="", uses=(*refused, *uses.values()))
    library_here = write_libraries(library, isa, here, lambda of: _library(list(chosen), of))
    made = replace(_rewritten(model, chosen, graph, out_dir), library=library, library_here=library_here)
    return KerneledGraph(graph=made, isa=isa.name, uses=(*refused, *uses.values()))


Verdict = tuple[bool, str, dict[str, float]]  # whether the kernel is used, the reason, speedups by shape


def names_of(wanted: str) -> tuple[str, ...]:
    return () if wanted == "auto" else tuple(wanted.split(","))


def require_named(named: Sequence[str], there: set[str], refused: Sequence[KernelUse]) -> None:
    """Raises RecipeError if a kernel requested by name does not apply to the model."""
    for name in sorted(set(named) - there):
        reasons = "; ".join(sorted({use.reason for use in refused if use.kernel == name}))
        raise RecipeError(
            f"the kernel '{name}' does not support any op of this model" + (f": {reasons}" if reasons else ""),
            hint="Omit --kernels.",
        )


def require_built(named: Sequence[str], target: Target, missing: str) -> None:
    """Raises RecipeError if kernels are requested by name but cannot be built."""
    if named:
        raise RecipeError(f"the kernels cannot be built for {target.name}: {missing}", hint="Omit --kernels.")


def verifying_isa(named: Sequence[str], target: Target, isa: Any) -> Any:
    """Return the instruction set to verify with on this machine: ``isa`` if it runs, else the best that does, or None.

    Raises RecipeError if there is none but kernels are requested by name.
    """
    here = isa if runs_here(isa) else isa_here()
    if named and here is None:
        raise RecipeError(
            f"the kernels for {target.name} cannot be verified: no kernel runs on this machine",
            hint="Omit --kernels, or export on another machine.",
        )
    return here


def write_libraries(library: Path, isa: Any, here: Any, built: Callable[[Any], bytes]) -> Path | None:
    """Write the library that ``built`` makes for ``isa`` and, if that does not run on this machine, one for ``here``.

    Returns the second library's path, if any.
    """
    library.write_bytes(built(isa))
    if here is isa:
        return None
    beside = library.with_name("kernels-here.so")
    beside.write_bytes(built(here))
    return beside


def on_request(kernel: str, named: Sequence[str], *, measured_here: bool) -> Verdict:
    if kernel not in named:
        return False, "not named in --kernels", {}
    return True, "named in --kernels" if measured_here else "named in --kernels, not measured", {}


def unmeasured(target: Target) -> Verdict:
    return False, f"not measured: this machine is not a {target.name}; {_HOW_TO_MEASURE}", {}


def by_speed(speedups: dict[str, float], target: Target) -> Verdict:
    """Use the kernel if it is faster over all shapes and not much slower on any."""
    mean = float(np.exp(np.mean(np.log(list(speedups.values())))))
    used = mean >= _FASTER and min(speedups.values()) >= _NEVER_BELOW
    return used, ("faster" if used else "not faster") + _ahead(target), speedups


def _sites(model: ir.Model) -> tuple[dict[Site, list[ir.Node]], tuple[KernelUse, ...]]:
    """Return the nodes that kernels support, by shape, and similar nodes that they do not, with the reason."""
    sites: dict[Site, list[ir.Node]] = {}
    refused: dict[tuple[str, str, str], int] = {}
    for node in model.graph:
        found = _site(model, node)
        if isinstance(found, Site):
            sites.setdefault(found, []).append(node)
        elif found is not None:
            refused[found] = refused.get(found, 0) + 1
    uses = [
        KernelUse(kernel=kernel, what=what, nodes=count, used=False, reason=reason)
        for (kernel, what, reason), count in refused.items()
    ]
    return sites, tuple(uses)


def _rewritten(model: ir.Model, chosen: dict[Site, list[ir.Node]], graph: Graph, out_dir: Path) -> Graph:
    for site, nodes in chosen.items():
        for node in nodes:
            (_replace_matmul if site.kernel == "matmul" else _replace_attention)(model, node)
    model.opset_imports[DOMAIN] = 1
    for name in [n for n, v in model.graph.initializers.items() if not v.uses() and not v.is_graph_output()]:
        del model.graph.initializers[name]
    path = out_dir / f"kernels-{graph.precision}.onnx"
    write_model(model, path)
    return replace(graph, path=path, weights_of=None)


def weights_table(model_path: Path) -> str:
    """Return JSON of the initializers in the model's data file that only our ops read; [] if there are none."""
    rows = []
    for name, value in ir.load(model_path).graph.initializers.items():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor) or tensor.nbytes < _LEAST_WEIGHT_BYTES:
            continue
        if all(node.domain == DOMAIN for node, _ in value.uses()):
            row = {"name": name, "dtype": tensor.dtype.numpy().name, "shape": [int(d) for d in tensor.shape.numpy()]}
            rows.append({**row, "offset": tensor.offset or 0, "bytes": tensor.nbytes})
    return json.dumps(rows)


def _use(
    site: Site, nodes: Sequence[ir.Node], *, used: bool, reason: str, speedups: dict[str, float] | None = None
) -> KernelUse:
    return KernelUse(
        kernel=site.kernel, what=site.what, nodes=len(nodes), used=used, reason=reason, speedups=speedups or {}
    )


def _site(model: ir.Model, node: ir.Node) -> Site | tuple[str, str, str] | None:
    """Return the node's site, (kernel, description, reason) if a kernel cannot be used, or None for another op."""
    if node.domain != "com.microsoft" or node.op_type not in ("MatMulNBits", "GroupQueryAttention"):
        return None
    attributes = {name: a.value for name, a in node.attributes.items()}
    inputs = [value if value is not None and value.name else None for value in node.inputs]
    inputs += [None] * (14 - len(inputs))
    if node.op_type == "MatMulNBits":
        k, n, bits, block = (int(attributes[name]) for name in ("K", "N", "bits", "block_size"))
        what = f"{k} x {n}, int{bits} in blocks of {block}"
        reason = ""
        weight = inputs[1]
        if int(attributes.get("accuracy_level", 0)) != 4:
            reason = "its activations stay in float32 (accuracy level below 4)"
        elif bits not in (4, 8) or k % block or inputs[4] is not None:
            reason = "its input size is not a multiple of its block size"
        elif weight is None or weight.const_value is None or len(list(weight.uses())) != 1:
            reason = "its weights are shared with the embedding table"
        elif inputs[3] is not None and inputs[3].dtype != ir.DataType.UINT8:
            reason = "its zero points are not integers"
        if reason:
            return "matmul", what, reason
        return Site(kernel="matmul", what=what, key=(k, n, bits, block, inputs[3] is not None, _as_half(inputs[2])))
    heads, kv_heads = int(attributes["num_heads"]), int(attributes["kv_num_heads"])
    past = inputs[3]
    size = int(str(past.shape[3])) if past is not None and past.shape is not None else 0
    what = f"{heads} query heads, {kv_heads} KV heads, head size {size}"
    rotary = 0
    if inputs[7] is not None and attributes.get("do_rotary", 0):
        assert inputs[7].shape is not None
        rotary = 2 * int(str(inputs[7].shape[1]))
    int8 = past is not None and past.dtype == ir.DataType.INT8
    if int8:
        what += ", int8 cache"
    reason = ""
    if past is None or not (past.dtype == ir.DataType.FLOAT or int8):
        reason = "its cache is neither float32 nor int8"
    elif int8 and any(attributes.get(f"{side}_quant_type") != "PER_CHANNEL" for side in "kv"):
        reason = "its cache does not have per-channel scales"
    elif size % 16 or not 16 <= size <= 256 or rotary % 32:
        reason = "its head size or half its rotary size is not a multiple of 16"
    elif attributes.get("softcap") or int(attributes.get("smooth_softmax", -1)) > 0 or inputs[11] is not None:
        reason = "it has a softcap or sinks"
    elif attributes.get("rotary_interleaved") or inputs[10] is not None:
        reason = "it has interleaved rotary embeddings, or an additive bias"
    if reason:
        return "attention", what, reason
    window = int(attributes.get("local_window_size", -1))
    return Site(kernel="attention", what=what, key=(heads, kv_heads, size, rotary, window, int8))


def instruction_set(target: Target) -> tuple[Any, str]:
    """Return the target's kernel instruction set, named or the best supported, and ""; or None and the reason."""
    for package in ("numba", "ziglang"):
        if importlib.util.find_spec(package) is None:
            return None, f"{package} is not installed (pip install 'edgecompress[kernels]')"
    from edgecompress_kernels.cpu.isa import ISAS

    if target.kernel_isa is not None and target.kernel_isa not in ISAS:
        return None, f"its kernel_isa '{target.kernel_isa}' is not one of {', '.join(ISAS)}"
    for isa in [ISAS[target.kernel_isa]] if target.kernel_isa is not None else ISAS.values():
        if isa.arch == target.arch and set(isa.needs) <= set(target.isa):
            return isa, ""
    return None, f"there is no kernel for {target.arch} with {', '.join(target.isa) or 'its features'}"


def runs_here(isa: Any) -> bool:
    return bool(isa.arch == host_arch() and set(isa.needs) <= host_features())


def isa_here() -> Any:
    """The best instruction set of this machine with kernels, or None."""
    from edgecompress_kernels.cpu.isa import ISAS

    return next(filter(runs_here, ISAS.values()), None)


def _ahead(target: Target) -> str:
    """A note if ONNX Runtime's ops were measured with instructions that the target lacks, where they are slower."""
    best = isa_here()
    return "" if best is None or set(best.needs) <= set(target.isa) else f" than ops that use {best.name} here"


def _library(sites: Sequence[Site], isa: Any) -> bytes:
    """Build a library for these ops, once per process."""
    matmuls = {s.key[2:] for s in sites if s.kernel == "matmul"}
    attentions = {(s.key[2], s.key[5]) for s in sites if s.kernel == "attention"}
    return _built(tuple(sorted(matmuls)), tuple(sorted(attentions)), isa)


@lru_cache(maxsize=8)
def _built(matmuls: tuple[tuple[Any, ...], ...], attentions: tuple[tuple[int, bool], ...], isa: Any) -> bytes:
    from edgecompress_kernels.cpu.build import Attention, Matmul, build

    wanted = [Matmul(bits=bits, block=block, zero_points=points, half=half) for bits, block, points, half in matmuls]
    return build(wanted, [Attention(head_size=size, int8=int8) for size, int8 in attentions], isa)


def _as_half(scales: ir.Value | None) -> bool:
    """Whether float16 represents every scale exactly, as quantize ensures: it saves two bytes per block."""
    found = _array(scales)
    with np.errstate(over="ignore"):
        return bool((found.astype(np.float16) == found).all())


def _array(value: ir.Value | None) -> Any:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _replace_matmul(model: ir.Model, node: ir.Node) -> None:
    from edgecompress_kernels.cpu.packing import pack_lanes, pack_weights

    attributes = {name: int(node.attributes[name].value) for name in ("K", "N", "bits", "block_size")}
    n, blocks = attributes["N"], attributes["K"] // attributes["block_size"]
    inputs = [*node.inputs, *[None] * (6 - len(node.inputs))]
    assert inputs[1] is not None
    name = inputs[1].name or node.name or "weight"
    packed = pack_weights(_array(inputs[1]).reshape(n, blocks, -1), attributes["bits"])
    scales = pack_lanes(_array(inputs[2]).reshape(n, blocks))
    if _as_half(inputs[2]):
        scales = scales.astype(np.float16)
    new: list[ir.Value | None] = [
        inputs[0],
        constant(model.graph, f"{name}.tiles", packed),
        constant(model.graph, f"{name}.tile_scales", scales),
        None,
        inputs[5],
    ]
    if inputs[3] is not None and inputs[3].name:
        points = _array(inputs[3]).reshape(n, -1)
        if attributes["bits"] == 4:
            points = np.stack([points & 15, points >> 4], axis=-1).reshape(n, -1)[:, :blocks]
        new[3] = constant(model.graph, f"{name}.tile_zero_points", pack_lanes(points))
    while new[-1] is None:
        new.pop()
    _swap(model, node, "MatMulBlocks", new, attributes)


def _replace_attention(model: ir.Model, node: ir.Node) -> None:
    inputs = [*node.inputs, *[None] * (14 - len(node.inputs))]
    past = inputs[3]
    assert past is not None
    assert past.shape is not None
    kept = {name: node.attributes[name].value for name in ("num_heads", "kv_num_heads", "scale")}
    window = node.attributes.get("local_window_size")
    kept |= {"head_size": int(str(past.shape[3])), "local_window_size": int(window.value) if window else -1}
    turned = node.attributes.get("do_rotary")
    new = list(inputs[:10]) if turned is not None and turned.value else list(inputs[:7])
    if past.dtype == ir.DataType.INT8:
        _swap(model, node, "CachedAttentionInt8", [*new, *[None] * (10 - len(new)), *inputs[12:14]], kept)
    else:
        _swap(model, node, "CachedAttention", new, kept)


def _swap(
    model: ir.Model, node: ir.Node, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any]
) -> None:
    new = ir.node(op, inputs, attributes=attributes, domain=DOMAIN, num_outputs=len(node.outputs), name=node.name)
    model.graph.insert_before(node, new)
    for old, made in zip(node.outputs, new.outputs, strict=True):
        name = old.name
        made.type, made.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, made, replace_graph_outputs=True)
        old.name, made.name = None, name
    model.graph.remove(node, safe=True)
