"""Uses our kernels for an encoder's layers, over packed tokens, if the whole graph is measured to be faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import onnx_ir as ir
from edgecompress_kernels.cpu.abi import ENCODER_LAYER

from edgecompress.backends.onnxruntime_cpu.encoder_layers import Chain, NotFound, find_chain
from edgecompress.backends.onnxruntime_cpu.encoder_packed import pack_encoder
from edgecompress.backends.onnxruntime_cpu.kernels import (
    KerneledGraph,
    by_speed,
    instruction_set,
    names_of,
    on_request,
    require_built,
    require_named,
    unmeasured,
    verifying_isa,
    write_libraries,
)
from edgecompress.graph import timing as latency
from edgecompress.graph.model import write_model
from edgecompress.graph.sessions import open_session
from edgecompress.types.arrays import Feed
from edgecompress.types.case import Case
from edgecompress.types.graph import Graph
from edgecompress.types.report import KernelUse
from edgecompress.types.target import Target

_KERNEL = ENCODER_LAYER.kernel


def use_encoder_kernels(
    graph: Graph,
    target: Target,
    wanted: str,
    threads: int,
    out_dir: Path,
    *,
    cases: Mapping[Case, Feed] | None,
) -> KerneledGraph:
    """Write ``kernels-<precision>.onnx`` and the library, and return that graph, or the given graph unchanged.

    ``wanted``: "auto", "none" or names of KERNELS. ``cases``: inputs for timing both graphs; None if this machine is
    not the target. If this machine cannot run the target's library, a second one is built, as in ``use_kernels``.
    Raises RecipeError if a kernel is requested by name but cannot be used.
    """
    if wanted == "none":
        return KerneledGraph(graph=graph, isa="", uses=())
    named = names_of(wanted)
    model = ir.load(graph.path)
    try:
        chain = find_chain(model)
    except NotFound as reason:
        refused = KernelUse(kernel=_KERNEL, what="the layers", nodes=0, used=False, reason=str(reason))
        require_named(named, set(), [refused])
        return KerneledGraph(graph=graph, isa="", uses=(refused,))
    require_named(named, {_KERNEL}, [])
    isa, missing = instruction_set(target)
    if isa is None:
        require_built(named, target, missing)
        return KerneledGraph(graph=graph, isa="", uses=(_use(chain, False, missing, {}),))
    if not named and cases is None:
        return KerneledGraph(graph=graph, isa="", uses=(_use(chain, *unmeasured(target)),))
    here = verifying_isa(named, target, isa)
    made = _packed(model, chain, graph, out_dir, isa, here)
    if named:
        verdict = on_request(_KERNEL, named, measured_here=cases is not None)
    else:
        verdict = by_speed(_speedups(graph, made, threads, cases or {}), target)
    uses = (_use(chain, *verdict),)
    return KerneledGraph(graph=made if verdict[0] else graph, isa=isa.name if verdict[0] else "", uses=uses)


def _packed(model: ir.Model, chain: Chain, graph: Graph, out_dir: Path, isa: Any, here: Any) -> Graph:
    sizes = chain.hidden, chain.heads, chain.feed_forward, chain.weight_bits
    library = out_dir / f"encoder-{graph.precision}" / f"kernels-{isa.name}.so"
    library.parent.mkdir(exist_ok=True)
    library_here = write_libraries(library, isa, here, lambda of: _built(*sizes, of))
    pack_encoder(model, chain)
    path = out_dir / f"kernels-{graph.precision}.onnx"
    write_model(model, path)
    return replace(graph, path=path, weights_of=None, library=library, library_here=library_here)


def _speedups(stock: Graph, ours: Graph, threads: int, cases: Mapping[Case, Feed]) -> dict[str, float]:
    """Time the whole graphs alternately: case -> speedup over ONNX Runtime's ops."""
    sides = {side: open_session(g.path, threads, g.library) for side, g in (("stock", stock), ("ours", ours))}
    found = {}
    for case, feed in cases.items():
        found[case.name] = round(latency.compare(sides, [feed])["ours"].speedup, 3)
    return found


def _use(chain: Chain, used: bool, reason: str, speedups: dict[str, float]) -> KernelUse:
    what = f"hidden {chain.hidden}, {chain.heads} heads, feed-forward {chain.feed_forward}"
    return KernelUse(kernel=_KERNEL, what=what, nodes=len(chain.layers), used=used, reason=reason, speedups=speedups)


@lru_cache(maxsize=8)
def _built(hidden: int, heads: int, feed_forward: int, weight_bits: int, isa: Any) -> bytes:
    """Build once per process."""
    from edgecompress_kernels.cpu.build import build
    from edgecompress_kernels.cpu.encoder_layer import Encoder

    kind = Encoder(hidden=hidden, heads=heads, feed_forward=feed_forward, weight_bits=weight_bits)
    return build([], [], isa, [kind])
