"""Operators of a profile, for a terminal: by layer, and the three with the most time above the roof."""

from __future__ import annotations

from collections import defaultdict

from edgecompress.profile.layers import last_operators, layer_of, most_worth, moved_bytes
from edgecompress.profile.peaks import memory_rate, read_rate
from edgecompress.terminal import table
from edgecompress.types.profile import Operator, OperatorProfile, Peaks, Profile
from edgecompress.types.workload import CALL

_MOST_ROWS = 12


def describe_operators(profile: Profile) -> list[str]:
    """The phases of the last shape with the last thread count; [] without measured operators."""
    return [line for found, peaks in last_operators(profile) for line in ("", *_phase(found, peaks))]


def _phase(found: OperatorProfile, peaks: Peaks) -> list[str]:
    layers: dict[str, list[Operator]] = defaultdict(list)
    for operator in found.operators:
        layers[layer_of(operator.module)].append(operator)
    rows = []
    for layer, operators in layers.items():
        ms, roof = sum(each.ms for each in operators), sum(each.roof_ms for each in operators)
        kinds = sorted({each.op: each.ms for each in operators}.items(), key=lambda item: -item[1])
        rows.append(
            [
                *(layer, f"{ms:.3f}", f"{ms / found.nodes_ms:.1%}", f"{roof / ms:.0%}" if ms else "—"),
                ", ".join(name for name, _ in kinds[:3]) + (", …" if len(kinds) > 3 else ""),
            ]
        )
    rows.sort(key=lambda row: -float(row[1]))
    rest = [f"and {len(rows) - _MOST_ROWS} more"] if len(rows) > _MOST_ROWS else []
    phase = "" if found.phase == CALL else f", {found.phase}"
    moved = moved_bytes(found)
    rates = ", ".join(f"{name} products {rate / 1e9:.0f} G/s" for name, rate in peaks.ops_per_s.items())
    return [
        f"{found.workload}{phase}, {found.threads} threads: the nodes take {found.nodes_ms:.2f} ms, timed one by one; "
        f"the call takes {found.call_ms:.2f} ms",
        f"roof  {rates}, reads {memory_rate(peaks) / 1e9:.1f} GB/s of memory and "
        f"{read_rate(peaks, moved) / 1e9:.1f} GB/s of {moved / 1e6:.0f} MB, the bytes of one call, repeatedly",
        table(["layer", "ms", "share", "of roof", "operators"], rows[:_MOST_ROWS]),
        *rest,
        *_worth(found),
    ]


def _worth(found: OperatorProfile) -> list[str]:
    lines = [
        f"{each.what}, {each.nodes} nodes: {each.ms:.2f} ms, {each.roof_ms:.2f} at the roof of {_ROOFS[each.bound]}"
        for each in most_worth(found)
    ]
    return [f"{'most to gain' if i == 0 else '':<20}  {line}" for i, line in enumerate(lines)]


_ROOFS = {"memory": "memory", "compute": "arithmetic"}
