"""Who waits, who is sent away, and what happens to a text that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from edgecompress.kinds.decoder.text_stream import Ended, Text
from tests.serve.running import Running, running, wait_until
from tests.serve.test_texts import client, own

LONG: dict[str, Any] = {"model": "tiny", "prompt": "the cat", "max_tokens": 16000, "temperature": 0}


def long_stream(ours: openai.OpenAI) -> Any:
    """One that has begun."""
    stream = ours.completions.create(stream=True, **LONG)
    next(iter(stream))
    return stream


def test_a_stream_that_is_hung_up_ends_the_text(endless: Running) -> None:
    with client(endless) as ours:
        stream = long_stream(ours)
        assert endless.service.turns.running
        stream.close()
        wait_until("the turn is free again", lambda: not endless.service.turns.running, 5)
        assert ours.completions.create(model="tiny", prompt="x", max_tokens=2).choices[0].text


def test_a_client_that_goes_away_ends_the_text(endless: Running) -> None:
    with client(endless, timeout=0.3) as ours, pytest.raises(openai.APITimeoutError):
        ours.completions.create(**LONG)
    wait_until("the turn is free again", lambda: not endless.service.turns.running, 5)


def test_a_client_that_goes_away_while_it_waits_frees_its_place(endless: Running) -> None:
    with client(endless) as ours, client(endless, timeout=0.3) as impatient:
        stream = long_stream(ours)
        with pytest.raises(openai.APITimeoutError):
            impatient.completions.create(**LONG)
        wait_until("nobody waits", lambda: endless.service.turns.waiting == 0, 5)
        assert endless.service.turns.running
        stream.close()
    wait_until("the turn is free again", lambda: not endless.service.turns.running, 5)


def test_a_text_that_is_given_up_before_it_began_ends(endless: Running) -> None:
    async def write() -> Ended:
        text = Text()
        text.cancel()
        await asyncio.to_thread(text.write, own(endless).session(), "x", {"max_new_tokens": 16000})
        await text.begun()
        parts = [part async for some in text.parts() for part in some]
        assert isinstance(parts[-1], Ended)
        return parts[-1]

    assert asyncio.run(write()).text.finish == "cancelled"


def test_who_waits_is_served_in_turn(endless: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[int] = []
    real = Text.write

    def write(self: Text, session: Any, prompt: Any, options: Any) -> None:
        served.append(options["max_new_tokens"])
        real(self, session, prompt, options)

    def ask(number: int) -> None:
        with client(endless) as theirs:
            theirs.completions.create(model="tiny", prompt="x", max_tokens=number + 1)

    with client(endless) as ours:
        stream = long_stream(ours)
        monkeypatch.setattr(Text, "write", write)
        threads = []
        for number in range(4):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
            wait_until("it waits", lambda expected=number + 1: endless.service.turns.waiting == expected)
        health = httpx2.get(f"{endless.root}/health").json()
        assert (health["running"], health["waiting"]) == (1, 4)
        stream.close()
        for thread in threads:
            thread.join(20)
    assert served == [1, 2, 3, 4]


def test_a_full_queue_sends_away(endless_bundle: Path) -> None:
    with running(endless_bundle, max_queue=0) as server, client(server) as ours:
        stream = long_stream(ours)
        with pytest.raises(openai.RateLimitError) as full:
            ours.completions.create(model="tiny", prompt="x")
        assert full.value.code == "queue_full"
        assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
        # what can never be is said at once, and not queued for
        with pytest.raises(openai.BadRequestError, match="context"):
            ours.completions.create(model="tiny", prompt="x", max_tokens=10**6)
        stream.close()
        wait_until("the turn is free again", lambda: not server.service.turns.running, 5)
        assert ours.completions.create(model="tiny", prompt="x").choices[0].text


def test_a_server_that_is_stopped_lets_a_text_end(endless_bundle: Path) -> None:
    with running(endless_bundle) as server, client(server) as ours:
        stream = ours.completions.create(model="tiny", prompt="x", max_tokens=300, temperature=0, stream=True)
        pieces = iter(stream)
        next(pieces)
        server.server.stop()
        wait_until("it refuses", lambda: server.service.turns.closed)
        assert list(pieces)[-1].choices[0].finish_reason == "length"


def test_a_text_that_does_not_end_in_time_ends_in_an_error(endless_bundle: Path) -> None:
    with running(endless_bundle, grace_s=0.2, max_queue=2) as server, client(server) as ours:
        stream = long_stream(ours)
        refused: list[BaseException] = []

        def ask() -> None:
            with client(server) as theirs:
                try:
                    theirs.completions.create(model="tiny", prompt="x")
                except openai.APIError as error:
                    refused.append(error)

        waiting = threading.Thread(target=ask)
        waiting.start()
        wait_until("it waits", lambda: server.service.turns.waiting == 1)
        server.server.stop()
        with pytest.raises(openai.APIError, match="shutting down"):
            list(stream)
        waiting.join(20)
        assert isinstance(refused[0], openai.InternalServerError)
        assert "shutting down" in str(refused[0])
        time.sleep(0.1)
        with pytest.raises(openai.APIConnectionError):
            ours.models.list()
