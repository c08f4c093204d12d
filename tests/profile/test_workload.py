"""Shapes, traces and the text that is made for them."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgecompress.errors import UsageError
from edgecompress.profile.workload import parse_workloads
from edgecompress.runtime.prose import text_of
from edgecompress.runtime.shapes import parse_texts


def test_shapes_are_texts_times_tokens(tmp_path: Path) -> None:
    trace = tmp_path / "requests.jsonl"
    trace.write_text('{"text": "why is the sky blue?"}\n\n{"tokens": 12, "at": 3}\n')
    one, eight, traced = parse_workloads(f"1x16, 8x128,trace:{trace}", parse_texts)
    assert (one.sizes, one.batch) == ({"tokens": 16}, 1)
    assert (eight.sizes, eight.batch) == ({"tokens": 128}, 8)
    assert (traced.name, traced.requests, traced.batch) == ("requests.jsonl", ("why is the sky blue?", 12), 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x", "'1x' is no"),
        ("128", "'128' is no"),
        ("", "'' is no"),
        ("0x16", "shape 0x16 is out of range"),
        ("1x16,1x16", "a shape appears twice"),
        ("trace:nowhere.jsonl", "the trace nowhere.jsonl cannot be read"),
    ],
)
def test_what_is_no_shape_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_workloads(text, parse_texts)
    assert caught.value.exit_code == 2
    assert caught.value.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a" "b"}', r"line 2, column 14: Expecting ',' delimiter"),
        ('{"tokens": 0}', 'line 2: neither "text" nor "tokens"'),
        ('{"tokens": true}', 'line 2: neither "text" nor "tokens"'),
        ('["a"]', 'line 2: neither "text" nor "tokens"'),
        ('{"text": "  "}', 'line 2: neither "text" nor "tokens"'),
    ],
)
def test_a_broken_line_of_a_trace_is_named(tmp_path: Path, line: str, message: str) -> None:
    trace = tmp_path / "t.jsonl"
    trace.write_text(f'{{"tokens": 3}}\n{line}\n')
    with pytest.raises(UsageError, match=message):
        parse_workloads(f"trace:{trace}", parse_texts)


def test_an_empty_trace(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="is empty"):
        parse_workloads(f"trace:{tmp_path / 't.jsonl'}", parse_texts)


def test_text_is_as_long_as_asked_for() -> None:
    for tokens in (1, 2, 17, 300):
        text = text_of(tokens, lambda t: t.split())  # type: ignore[arg-type,return-value]
        assert len(text.split()) == tokens
    assert text_of(9, lambda t: t.split(), 1) != text_of(9, lambda t: t.split(), 2)  # type: ignore[arg-type,return-value]
    assert len(text_of(200_000, lambda t: t.split()).split()) == 200_000  # type: ignore[arg-type,return-value]
