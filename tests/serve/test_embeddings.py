"""Embeddings over the protocol are the runtime's own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator

import httpx2
import numpy as np
import openai
import pytest

from edgecompress.errors import UsageError
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.serve.app import Service
from tests.decoder_bundle import TRAINING
from tests.serve.encoder_bundle import LONGEST, SIZE, encoder_bundle
from tests.serve.running import Running, running, wait_until
from tests.serve.test_texts import client

TEXTS = [*TRAINING, "the cat"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(encoder_bundle(tmp_path_factory.mktemp("encoder") / "b")) as server:
        yield server


def test_vectors_are_the_runtimes_own(encoder: Running) -> None:
    model = encoder.service.model
    assert isinstance(model, Encoder)
    expected = model.encode(TEXTS)
    with client(encoder) as ours:
        plain = ours.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
        packed = ours.embeddings.create(model="tiny", input=TEXTS)  # the client asks for base64 by itself
        one = ours.embeddings.create(model="tiny", input=TEXTS[0], dimensions=expected.shape[1])
    for found in (plain, packed):
        assert [each.index for each in found.data] == [0, 1, 2, 3]
        np.testing.assert_array_equal(np.array([each.embedding for each in found.data], dtype=np.float32), expected)
    np.testing.assert_array_equal(np.array(one.data[0].embedding, dtype=np.float32), model.encode(TEXTS[0])[0])
    tokens = sum(len(each.ids) for each in model.tokenizer.encode(TEXTS, prompt="why is ", truncate=False))
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == tokens


def test_what_makes_no_sense_is_refused(encoder: Running) -> None:
    with client(encoder) as ours:
        for wrong, said in (
            ([[1, 2]], "token ids are not"),
            ([], "1 to 2048"),
            ("x " * LONGEST, "token"),
            (["a"] * 2049, "2048"),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                ours.embeddings.create(model="tiny", input=wrong)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError, match=f"{SIZE} dimensions"):
            ours.embeddings.create(model="tiny", input="x", dimensions=16)
        with pytest.raises(openai.NotFoundError):
            ours.embeddings.create(model="other", input="x")
        with pytest.raises(openai.BadRequestError, match="is an encoder"):
            ours.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
    assert httpx2.get(f"{encoder.root}/health").json()["task"] == "sentence-similarity"
    wait_until("the turn is free again", lambda: not encoder.service.turns.running)


def test_other_tasks_have_no_endpoint(encoder: Running) -> None:
    model = copy.copy(encoder.service.model)
    model.manifest = dataclasses.replace(model.manifest, task="text-classification")
    with pytest.raises(UsageError, match="task is text-classification, which has no endpoint in OpenAI's protocol"):
        Service(model, "tiny", 1)
