"""`edgecompress serve` as a process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from edgecompress.cli import main
from tests.serve.running import wait_until

KEY = "sk-of-the-server-4711"


@contextlib.contextmanager
def process(bundle: Path, *flags: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """One that answers, and what it said of itself."""
    started = subprocess.Popen(
        [sys.executable, "-m", "edgecompress", "serve", str(bundle), "--port", "0", "--json", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert started.stdout is not None
    try:
        text = ""
        while not text.endswith("}\n"):
            line = started.stdout.readline()
            assert line, started.communicate()[1]
            text += line
        yield started, json.loads(text)
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


def test_it_answers_and_ends_politely(endless_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    with process(endless_bundle, "--name", "org/m", "--api-key-file", str(tmp_path / "key")) as (server, said):
        assert said["model"] == "org/m"
        with openai.OpenAI(base_url=said["url"], api_key=KEY, max_retries=0) as ours:
            assert [model.id for model in ours.models.list()] == ["org/m"]
            assert ours.models.retrieve("org/m").id == "org/m"
            done = ours.completions.create(model="org/m", prompt="the cat", max_tokens=400, stream=True, temperature=0)
            pieces = iter(done)
            next(pieces)
            server.send_signal(signal.SIGTERM)
            assert list(pieces)[-1].choices[0].finish_reason == "length"
        out, err = server.communicate(timeout=20)
        assert server.returncode == 0, err
        assert "stopped" in err
        assert KEY not in out + err
        assert "Traceback" not in err


def test_a_second_signal_ends_it_at_once(endless_bundle: Path) -> None:
    with process(endless_bundle) as (server, said):
        with openai.OpenAI(base_url=said["url"], api_key="none", max_retries=0) as ours:
            stream = ours.completions.create(model=said["model"], prompt="x", max_tokens=16000, stream=True)
            pieces = iter(stream)
            next(pieces)
            server.send_signal(signal.SIGINT)
            wait_until("it takes no new connections", lambda: not answers(said["url"]))
            server.send_signal(signal.SIGINT)
            with pytest.raises(openai.APIError, match="shutting down"):
                list(pieces)
        assert server.wait(20) == 0


def answers(url: str) -> bool:
    try:
        with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=5) as other:
            other.models.list()
    except openai.APIConnectionError:
        return False
    return True


def test_a_port_in_use_is_refused(endless_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(endless_bundle), "--port", str(port)]) == 3
    assert f"port {port} of 127.0.0.1 is in use" in capsys.readouterr().err
    assert main(["serve", str(endless_bundle), "--host", "nowhere.invalid"]) == 3
    assert main(["serve", str(endless_bundle), "--port", "99999"]) == 2


def test_a_key_file_is_read_with_care(endless_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("", "two words", "line\nand line"):
        (tmp_path / "key").write_text(content)
        assert main(["serve", str(endless_bundle), "--api-key-file", str(tmp_path / "key")]) == 2
        assert "holds no API key" in capsys.readouterr().err
    assert main(["serve", str(endless_bundle), "--api-key-file", str(tmp_path / "none")]) == 2


def test_it_works_without_torch(endless_bundle: Path) -> None:
    script = (
        "import json, os, signal, sys, threading, urllib.request\n"
        "from pathlib import Path\n"
        "from edgecompress.serve.server import serve\n"
        "def ask(serving):\n"
        "    body = json.dumps({'model': serving.model, 'prompt': 'x', 'max_tokens': 3}).encode()\n"
        "    asked = urllib.request.Request(serving.url + '/completions', body, {'content-type': 'application/json'})\n"
        "    assert urllib.request.urlopen(asked).status == 200\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "ready = lambda serving: threading.Thread(target=ask, args=(serving,)).start()\n"
        f"serve(Path({str(endless_bundle)!r}), port=0, ready=ready)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxscript', 'huggingface_hub', 'openai', 'rich'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
