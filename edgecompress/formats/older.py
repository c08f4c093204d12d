"""Converts documents of bundles that earlier versions wrote."""

from __future__ import annotations

from typing import Any


def report_now(data: Any) -> Any:
    """Drop ``costly_layers``, which was published but never filled."""
    if not isinstance(data, dict):
        return data
    return {key: value for key, value in data.items() if key != "costly_layers"}


def measurements_now(data: Any) -> Any:
    """Replace batch and length by named cases."""
    if not isinstance(data, dict) or not isinstance(data.get("latencies"), list):
        return data
    return {**data, "latencies": [_latency_now(row) for row in data["latencies"]]}


def _latency_now(row: Any) -> Any:
    if not isinstance(row, dict) or "batch" not in row or "length_tokens" not in row:
        return row
    rest = {key: value for key, value in row.items() if key not in ("batch", "length_tokens")}
    batch, tokens = row["batch"], row["length_tokens"]
    if not tokens:
        return {**rest, "case": f"batch {batch}", "sizes": {"batch": batch}}
    return {**rest, "case": f"{batch}×{tokens}", "sizes": {"batch": batch, "tokens": tokens}}
