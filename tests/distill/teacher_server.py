"""A teacher that answers, or fails, as a test tells it to: a real server, and an account of what it was asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from edgecompress.serve.server import listen
from tests.serve.running import wait_until

Behaviour = str | int | Response
Script = Callable[[int, str], Behaviour]
"""How often the prompt was asked before, and the prompt -> a status, or what :meth:`TeacherServer._stream` knows."""
USAGE = (10, 5)


class TeacherServer:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()  # to the end
        self.keys: set[str] = set()
        self.bodies: list[dict[str, Any]] = []
        self.flying = self.most_flying = 0
        self.url = ""
        self.release = threading.Event()  # for "wait"

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        prompt = body["messages"][-1]["content"]
        key = request.headers["authorization"].removeprefix("Bearer ")
        before = self.asked[prompt]
        self.asked[prompt] += 1
        self.bodies.append(body)
        self.keys.add(key)
        what = self.script(before, prompt)
        if isinstance(what, Response):
            return what
        if isinstance(what, int):
            error = {"message": f"told to say {what} to {key}", "code": None, "type": "t", "param": None}
            return JSONResponse({"error": error}, what)
        return StreamingResponse(self._stream(what, prompt, key), media_type="text/event-stream")

    async def _stream(self, what: str, prompt: str, key: str) -> AsyncIterator[bytes]:
        def event(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
            return f"data: {json.dumps(chunk | more)}\n\n".encode()

        self.flying += 1
        self.most_flying = max(self.most_flying, self.flying)
        try:
            if what == "wait":
                while not self.release.is_set():
                    await asyncio.sleep(0.01)
            yield event({"role": "assistant", "content": ""})
            if what == "html":
                yield b"<html>gateway</html>\n\n"
                return
            if what == "bad json":
                yield b"data: {this is no JSON}\n\n"
                return
            if what == "wrong shape":
                yield b'data: {"choices": [7]}\n\n'
                return
            if what == "error event":
                yield b'data: {"error": {"message": "overloaded"}}\n\n'
                return
            if what == "think":
                yield event({"reasoning_content": "hm"})
            yield event({"content": f"an answer to {prompt}"})
            if what == "echo key":
                yield event({"content": f", and your key is {key}"})
            if what == "slow":
                await asyncio.sleep(3)
            if what == "truncated":
                return
            if what == "cut":
                raise ConnectionResetError
            self.answered[prompt] += 1
            yield event({}, {"length": "length", "filtered": "content_filter"}.get(what, "stop"))
            if what != "no usage":
                usage = {"prompt_tokens": USAGE[0], "completion_tokens": USAGE[1], "total_tokens": sum(USAGE)}
                yield event({}, choices=[], usage=usage)
            yield b"data: [DONE]\n\n"
        finally:
            self.flying -= 1


@contextlib.contextmanager
def teaching(script: Script = lambda before, prompt: "ok") -> Iterator[TeacherServer]:
    teacher = TeacherServer(script)
    app = Starlette(routes=[Route("/v1/chat/completions", teacher.chat, methods=["POST"])])
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # what breaks here is meant to
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        teacher.url = f"openai:http://127.0.0.1:{listener.getsockname()[1]}/v1#m"
        config = uvicorn.Config(app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            wait_until("the teacher is there", lambda: server.started)
            yield teacher
        finally:
            teacher.release.set()
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()


def write_prompts(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps({"prompt": f"question {number}"}) + "\n" for number in range(count)))
    return path


def texts_of(folder: Path) -> str:
    """All that is in any file."""
    return "\n".join(path.read_bytes().decode("latin-1") for path in sorted(folder.rglob("*")) if path.is_file())
