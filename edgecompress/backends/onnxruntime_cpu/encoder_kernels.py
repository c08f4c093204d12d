"""Our kernels for an encoder: its layers over packed tokens, where the whole graph was measured to be faster so."""

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
    """Write ``kernels-<precision>.onnx`` and the library and return the graph, or the given one as it is.

    ``wanted``: "auto", "none" or names of KERNELS. ``cases``: what both graphs are timed on; None
    where this machine cannot stand for the target. Where this machine cannot run the target's library, there is a
    second one, as in ``use_kernels``. Raises RecipeError if a kernel that was named cannot be had.
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
    """The whole graphs in turn: case -> how many times as fast as ONNX Runtime's ops."""
    sides = {side: open_session(g.path, threads, g.library) for side, g in (("stock", stock), ("ours", ours))}
    found = {}
    for case, feed in cases.items():
        found[case.name] = round(latency.compare(sides, [feed])["ours"].speedup, 3)
    return found


def _use(chain: Chain, used: bool, reason: str, speedups: dict[str, float]) -> KernelUse:
    what = f"{chain.hidden} wide, {chain.heads} heads, {chain.feed_forward} between"
    return KernelUse(kernel=_KERNEL, what=what, nodes=len(chain.layers), used=used, reason=reason, speedups=speedups)


@lru_cache(maxsize=8)
def _built(hidden: int, heads: int, feed_forward: int, weight_bits: int, isa: Any) -> bytes:
    """Twice in one process is once."""
    from edgecompress_kernels.cpu.build import build
    from edgecompress_kernels.cpu.encoder_layer import Encoder

    kind = Encoder(hidden=hidden, heads=heads, feed_forward=feed_forward, weight_bits=weight_bits)
    return build([], [], isa, [kind])
