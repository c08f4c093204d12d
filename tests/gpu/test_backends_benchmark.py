"""The benchmark of whole students, as far as it goes without a GPU: its sides on the CPU, and what it makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig

from benchmarks import bench_gpu_backends as bench
from benchmarks.bench_gpu_backends import BASE, decoder_rows, encoder_rows, opened
from benchmarks.gpu_sides import (
    STEPS_BEHIND,
    EncoderSide,
    our_decoder,
    our_encoder,
    target_for,
    torch_decoder,
    torch_encoder,
)
from edgecompress.cli import main


def test_encoders_are_held_against_the_reference_and_timed_in_turn(minilm_dir: Path, minilm_bundle: Path) -> None:
    reference = torch_encoder(BASE, minilm_dir, "cpu", compiled=False)
    wrong = EncoderSide(name="wrong", run=lambda feed: -reference.run(feed), weight_bytes=1)
    rows = encoder_rows([reference, our_encoder("ours", minilm_bundle, None), wrong], reference, [(2, 16)], rounds=4)
    base, ours, bad = rows
    assert (base["least_cosine"], base["rounds"]) == (1.0, 4)
    assert ours["least_cosine"] >= 0.98
    assert ours["torch_eager_over_it"]["median"] > 0
    assert ours["p50_ms"] <= ours["p99_ms"]
    assert "p50_ms" not in bad
    assert "are not those of torch" in bad["reason"]
    assert 0 < ours["weight_bytes"] < base["weight_bytes"]


def test_decoders_read_the_same_and_count_what_they_move(
    small_decoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "STEPS", 6)
    bundle = tmp_path / "d.bundle"
    assert main(["export", str(small_decoder_dir), "--precision", "fp32", "-o", str(bundle)]) == 0
    torch_side = torch_decoder(BASE, small_decoder_dir, "cpu", compiled=False, most_tokens=40 + STEPS_BEHIND)
    ours = our_decoder("ours", bundle, None)
    config = AutoConfig.from_pretrained(small_decoder_dir)
    ids = np.arange(10, 50)
    np.testing.assert_allclose(ours.prefill(ids), torch_side.prefill(ids), atol=1e-3)
    for token in (7, 9, 11):
        np.testing.assert_allclose(ours.step(token), torch_side.step(token), atol=1e-3)
    bandwidth = 1e6  # so little that the share has digits enough, however slow this machine is
    rows = decoder_rows([torch_side, ours], torch_side.prefill, [20], 2, bandwidth, config.vocab_size)
    assert ours.kv_bytes_per_token == torch_side.kv_bytes_per_token
    for row in rows:
        assert row["correlation_with_float32"] > 0.999
        assert row["ttft_ms"] > 0
        assert row["tpot_ms"] <= row["token_p99_ms"] * 1.001
        per_s = row["bytes_a_step"] / (row["tpot_ms"] / 1e3)
        assert row["share_of_copy_bandwidth"] == pytest.approx(per_s / bandwidth, rel=0.02)
    assert rows[1]["tpot_torch_eager_over_it"]["median"] > 0
    ours.close()


def test_a_side_that_is_not_there_says_why() -> None:
    rows: list[dict[str, object]] = []

    def absent() -> None:
        raise ImportError("no module named tensorrt")

    assert opened(absent, "ours tensorrt fp16", rows) == []
    assert rows == [{"kind": "absent", "side": "ours tensorrt fp16", "reason": "ImportError: no module named tensorrt"}]


def test_the_target_is_the_gpus() -> None:
    assert target_for((9, 0)) == "h200"
    assert target_for((8, 6)) == "rtx-3060"
    with pytest.raises(SystemExit, match=r"no known target has compute capability 7\.5"):
        target_for((7, 5))
