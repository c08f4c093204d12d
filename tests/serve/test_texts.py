"""Chat and completions, asked for with OpenAI's own client library over a real connection."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai
import pytest

from edgecompress.kinds.decoder.runtime import Generator
from tests.decoder_bundle import decoder_bundle, random_weights
from tests.serve.conftest import PROMPT
from tests.serve.running import Running, running, wait_until

ASKED: Any = [{"role": "user", "content": PROMPT}]


def client(server: Running, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(**{"base_url": server.url, "api_key": "none", "max_retries": 0, "timeout": 30.0} | options)


def test_the_model_is_listed(thinking: Running) -> None:
    with client(thinking) as ours:
        assert [model.id for model in ours.models.list()] == ["tiny"]
        assert ours.models.retrieve("tiny").owned_by == "edgecompress"
        with pytest.raises(openai.NotFoundError):
            ours.models.retrieve("org/other")


def test_a_chat_is_answered_with_its_reasoning_apart(thinking: Running) -> None:
    with client(thinking) as ours:
        done = ours.chat.completions.create(model="tiny", messages=ASKED, temperature=0)
    choice: Any = done.choices[0]
    assert choice.message.content == "It is 😀."
    assert choice.message.reasoning_content == "hm, light"
    assert choice.finish_reason == "stop"
    assert done.usage is not None
    assert done.usage.prompt_tokens == len(own(thinking).token_ids(ASKED))
    assert done.usage.completion_tokens == len(own(thinking).generate(ASKED).token_ids)
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens


def own(server: Running) -> Generator:
    """The server's model, in this same process."""
    assert isinstance(server.service.model, Generator)
    return server.service.model


def test_a_chat_streams(thinking: Running) -> None:
    with client(thinking) as ours:
        stream = ours.chat.completions.create(
            model="tiny", messages=ASKED, temperature=0, stream=True, stream_options={"include_usage": True}
        )
        chunks: list[Any] = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert deltas[0].role == "assistant"
    assert "".join(delta.content or "" for delta in deltas) == "It is 😀."
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "hm, light"
    assert len([delta for delta in deltas if delta.content]) > 1
    assert chunks[-2].choices[0].finish_reason == "stop"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 3
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_events_are_as_openai_writes_them(thinking: Running) -> None:
    body = {"model": "tiny", "messages": ASKED, "stream": True}
    answer = httpx2.post(f"{thinking.url}/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-1] == ""
    assert events[-2] == "data: [DONE]"
    for event in events[:-2]:
        chunk = json.loads(event.removeprefix("data: "))
        assert chunk["object"] == "chat.completion.chunk"
        assert "usage" not in chunk


def test_a_completion_is_what_the_runtime_gives(endless: Running) -> None:
    wishes: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "top_p": 0.9, "seed": 3}
    generator = own(endless)
    with client(endless) as ours:
        expected = generator.generate("the cat", max_new_tokens=12, temperature=0.8, top_p=0.9, seed=3)
        done = ours.completions.create(model="tiny", prompt="the cat", **wishes)
        assert done.choices[0].text == str(expected)
        assert done.choices[0].finish_reason == "length"
        streamed = ours.completions.create(model="tiny", prompt=["the cat"], stream=True, **wishes)
        assert "".join(chunk.choices[0].text for chunk in streamed) == str(expected)
        ids = generator.token_ids("the cat")
        assert ours.completions.create(model="tiny", prompt=ids, **wishes).choices[0].text == str(expected)
        assert done.usage is not None
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (len(ids), 12)
        short = ours.completions.create(model="tiny", prompt="the cat", temperature=0)
        assert short.usage is not None
        assert short.usage.completion_tokens == 16  # as OpenAI has it, where nothing is said


def test_what_a_conversation_had_before_is_not_run_again(endless: Running) -> None:
    with client(endless) as ours:
        prompt = "the dog in the garden looked at the cat on the mat"
        first = ours.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0)
        again = ours.completions.create(
            model="tiny", prompt=prompt + first.choices[0].text, max_tokens=1, temperature=0
        )
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) > 8


def test_a_text_stops_where_it_is_told(thinking: Running) -> None:
    with client(thinking) as ours:
        for stop in ("is", ["😀", "is"]):
            done = ours.chat.completions.create(model="tiny", messages=ASKED, stop=stop, temperature=0)
            assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("It ", "stop")
        cut = ours.chat.completions.create(model="tiny", messages=ASKED, max_completion_tokens=2, temperature=0)
        assert cut.choices[0].finish_reason == "length"
        assert cut.usage is not None
        assert cut.usage.completion_tokens == 2


def test_parts_and_roles_that_newer_clients_send(thinking: Running) -> None:
    parts: Any = [
        {"role": "user", "content": [{"type": "text", "text": PROMPT[:5]}, {"type": "text", "text": PROMPT[5:]}]}
    ]
    with client(thinking) as ours:
        done = ours.chat.completions.create(model="tiny", messages=parts, temperature=0)
        assert done.choices[0].message.content == "It is 😀."
        sent_back: Any = [
            {"role": "developer", "content": "Be short."},
            *ASKED,
            done.choices[0].message.model_dump(),
            {"role": "user", "content": "and then?"},
        ]
        ours.chat.completions.create(model="tiny", messages=sent_back, max_tokens=2)


NEUTRAL: dict[str, Any] = {
    "n": 1,
    "tools": [],
    "tool_choice": "none",
    "logprobs": False,
    "response_format": {"type": "text"},
    "frequency_penalty": 0.0,
    "presence_penalty": 0,
    "logit_bias": {},
    "user": "somebody",
    "stop": None,
    "top_k": 5,
    "chat_template_kwargs": {"enable_thinking": True},
}


def test_what_changes_nothing_may_be_said(thinking: Running) -> None:
    body = {"model": "tiny", "messages": ASKED, "max_tokens": 2} | NEUTRAL
    answer = httpx2.post(f"{thinking.url}/chat/completions", json=body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "7"}, "max_tokens"),
        ({"temperature": -1}, None),
        ({"top_p": 0}, None),
        ({"stop": [""]}, None),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, None),
    ],
)
def test_what_is_not_supported_is_refused(thinking: Running, wish: dict[str, Any], param: str | None) -> None:
    body = {"model": "tiny", "messages": ASKED} | wish
    answer = httpx2.post(f"{thinking.url}/chat/completions", json=body)
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert (error["param"] or "").split(".")[0] == (param or "")


def test_other_refusals_have_openais_form(thinking: Running) -> None:
    with client(thinking) as ours:
        with pytest.raises(openai.NotFoundError, match="the model 'gpt' does not exist here") as unknown:
            ours.chat.completions.create(model="gpt", messages=ASKED)
        assert unknown.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match="context is 256 tokens") as long:
            ours.chat.completions.create(model="tiny", messages=ASKED, max_tokens=250)
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.BadRequestError, match="is a decoder"):
            ours.embeddings.create(model="tiny", input="x")
        with pytest.raises(openai.NotFoundError, match="unknown URL: POST /v1/responses"):
            ours.responses.create(model="tiny", input="x")
    broken = httpx2.post(
        f"{thinking.url}/chat/completions", content=b'{"model": ', headers={"content-type": "application/json"}
    )
    assert (broken.status_code, broken.json()["error"]["code"]) == (400, "invalid_json")
    for field, code in (("verbosity", "unsupported_parameter"), ("n", "unsupported_value")):
        asked = {"model": "tiny", "messages": ASKED, field: 7}
        error = httpx2.post(f"{thinking.url}/chat/completions", json=asked).json()["error"]
        assert (error["code"], error["param"]) == (code, field)
        assert "'" + field + "'" in error["message"]
    large = httpx2.post(f"{thinking.url}/completions", json={"model": "tiny", "prompt": "x" * (17 << 20)})
    assert large.status_code == 413
    missing = httpx2.post(f"{thinking.url}/completions", json={"prompt": "x"})
    assert (missing.status_code, missing.json()["error"]["param"]) == (400, "model")


def test_a_chat_needs_a_chat_template(tmp_path: Path) -> None:
    with running(decoder_bundle(tmp_path / "b", template=None)) as server, client(server) as ours:
        with pytest.raises(openai.BadRequestError, match="has no chat template"):
            ours.chat.completions.create(model="tiny", messages=ASKED)
        assert ours.completions.create(model="tiny", prompt="the cat").choices[0].text


def test_a_key_lets_in_who_has_it(thinking_bundle: Path) -> None:
    with running(thinking_bundle, api_key="sk-of-the-test-0815") as server:
        for wrong in ("none", "sk-of-the-test-0816", "ключ"):
            answer = httpx2.get(f"{server.url}/models", headers={"Authorization": f"Bearer {wrong}".encode()})
            assert answer.status_code == 401
            assert "0815" not in answer.text
        with client(server, api_key="wrong") as theirs, pytest.raises(openai.AuthenticationError):
            theirs.models.list()
        with client(server, api_key="sk-of-the-test-0815") as ours:
            assert [model.id for model in ours.models.list()] == ["tiny"]
        assert httpx2.get(f"{server.root}/health").json()["status"] == "ok"


def test_a_text_that_fails_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    weights = random_weights(256)
    weights["head"] = np.full_like(weights["head"], np.nan)
    with running(decoder_bundle(tmp_path / "b", weights)) as server, client(server) as ours:
        with pytest.raises(openai.InternalServerError, match="logits that are not numbers"):
            ours.completions.create(model="tiny", prompt="x")
        stream = ours.completions.create(model="tiny", prompt="x", stream=True)
        with pytest.raises(openai.APIError, match="logits that are not numbers"):
            list(stream)
        raw = httpx2.post(f"{server.url}/completions", json={"model": "tiny", "prompt": "x", "stream": True})
        assert "[DONE]" not in raw.text
        wait_until("the turn is free again", lambda: not server.service.turns.running)


def test_a_seed_gives_the_same_text_again(endless: Running) -> None:
    with client(endless) as ours:
        texts = [
            ours.completions.create(model="tiny", prompt="x", seed=seed, temperature=1, max_tokens=20).choices[0].text
            for seed in (1, 1, 2)
        ]
    assert texts[0] == texts[1] != texts[2]
