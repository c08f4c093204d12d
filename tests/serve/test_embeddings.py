"""Embeddings over the protocol are the runtime's own."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import httpx2
import numpy as np
import openai
import pytest

from edgecompress.errors import UsageError
from edgecompress.pipeline import export
from edgecompress.runtime import Encoder
from edgecompress.serve.app import Service
from edgecompress.types.recipe import Recipe, RuntimeRecipe, StudentRecipe
from tests.serve.running import Running, running
from tests.serve.test_texts import client
from tests.tiny import SENTENCES, tiny_checkpoint


def tiny_bundle(folder: Path) -> Path:
    student = StudentRecipe(source=str(tiny_checkpoint(folder / "student", "bert")))
    export(Recipe(precision="fp32", student=student, runtime=RuntimeRecipe(kernels="none")), folder / "b")
    return folder / "b"


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tiny_bundle(tmp_path_factory.mktemp("encoder"))) as server:
        yield server


def test_vectors_are_the_runtimes_own(encoder: Running) -> None:
    model = encoder.service.model
    assert isinstance(model, Encoder)
    expected = model.encode(SENTENCES)
    with client(encoder) as ours:
        plain = ours.embeddings.create(model="tiny", input=SENTENCES, encoding_format="float")
        packed = ours.embeddings.create(model="tiny", input=SENTENCES)  # the client asks for base64 by itself
        one = ours.embeddings.create(model="tiny", input=SENTENCES[0], dimensions=expected.shape[1])
    for found in (plain, packed):
        assert [each.index for each in found.data] == [0, 1, 2, 3]
        np.testing.assert_array_equal(np.array([each.embedding for each in found.data], dtype=np.float32), expected)
    np.testing.assert_array_equal(np.array(one.data[0].embedding, dtype=np.float32), model.encode(SENTENCES[0])[0])
    tokens = sum(len(each.ids) for each in model.tokenizer.encode(SENTENCES, prompt="", truncate=False))
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == tokens


def test_what_makes_no_sense_is_refused(encoder: Running) -> None:
    with client(encoder) as ours:
        for wrong, said in (
            ([[1, 2]], "token ids are not"),
            ([], "1 to 2048"),
            ("x " * 300, "token"),
            (["a"] * 2049, "2048"),
        ):
            with pytest.raises(openai.BadRequestError, match=said):
                ours.embeddings.create(model="tiny", input=wrong)  # type: ignore[arg-type]
        with pytest.raises(openai.BadRequestError, match="32 dimensions"):
            ours.embeddings.create(model="tiny", input="x", dimensions=16)
        with pytest.raises(openai.NotFoundError):
            ours.embeddings.create(model="other", input="x")
        with pytest.raises(openai.BadRequestError, match="is an encoder"):
            ours.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x"}])
    assert httpx2.get(f"{encoder.root}/health").json()["task"] == "feature-extraction"
    assert not encoder.service.turns.running


def test_other_tasks_have_no_endpoint(encoder: Running) -> None:
    model = copy.copy(encoder.service.model)
    model.manifest = dataclasses.replace(model.manifest, task="text-classification")
    with pytest.raises(UsageError, match="for text-classification, which OpenAI's protocol has no endpoint for"):
        Service(model, "tiny", 1)
