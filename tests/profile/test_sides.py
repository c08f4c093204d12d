"""Token ids that are timed and compared exist in the student's vocabulary, however small it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds.encoder.profile import open_subject
from edgecompress.loading import open_models
from edgecompress.profile.sides import inputs_of, parse_side
from edgecompress.runtime.shapes import parse_texts
from tests.decoder_bundle import VOCAB
from tests.serve.encoder_bundle import encoder_bundle


def test_sides_get_ids_of_the_smallest_vocabulary(tmp_path: Path) -> None:
    bundle = encoder_bundle(tmp_path / "s.bundle")
    specs = [parse_side(str(bundle)), parse_side(str(bundle))]
    feed = inputs_of(parse_texts("2x16"), specs)
    ids = feed["input_ids"]
    assert ids.shape == (2, 16)
    assert ids.min() >= 0
    assert ids.max() < VOCAB
    assert len(np.unique(ids)) > 8, "they still differ"
    side = specs[0].open(1)
    try:
        assert np.isfinite(side.run(feed)).all()
    finally:
        side.close()


def test_a_checkpoint_says_its_vocabulary(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"vocab_size": 77}')
    assert parse_side(f"torch:{tmp_path}").vocabulary == 77
    (tmp_path / "empty").mkdir()
    assert parse_side(f"torch:{tmp_path / 'empty'}").vocabulary is None


def test_an_encoders_phase_runs_on_texts_of_its_own_tokenizer(tmp_path: Path) -> None:
    manifest, folder = open_bundle(encoder_bundle(tmp_path / "s.bundle"))
    subject = open_subject(open_models(manifest, folder, threads=1))
    try:
        (vectors,) = subject.phases(parse_texts("3x12"))["call"]()  # type: ignore[misc]
        assert vectors.shape[0] == 3
        assert np.isfinite(vectors).all()
    finally:
        subject.close()
