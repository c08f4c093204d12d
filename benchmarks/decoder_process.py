"""One side of the decoder benchmark in a process of its own, commanded through a pipe.

So the sides do not share memory, threads or packages.

``python -m benchmarks.decoder_process KIND NAME MODEL THREADS`` reads one JSON command a line and answers each with a
line. Time is measured inside the process, without the pipe. A peer's own python needs NumPy and the peer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_decoder import Genai, LlamaCpp, OpenVino

ROOT = Path(__file__).parents[1]
_FACTS = ("model_bytes", "weight_bytes_per_token", "kv_bytes_per_token", "settings")
_END_S = 10.0


class Process:
    """The near end: the side's facts as attributes, its verbs as calls. Raises RuntimeError with what the side said."""

    def __init__(self, kind: str, name: str, model: Path, threads: int, python: str) -> None:
        self.name, self.ours = name, kind == "edgecompress"
        command = [python, "-m", "benchmarks.decoder_process", kind, name, str(model), str(threads)]
        settings = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **settings},
        )
        try:
            facts = self._answer()
        except RuntimeError:
            self.close()
            raise
        self.model_bytes: int = facts["model_bytes"]
        self.weight_bytes_per_token: int = facts["weight_bytes_per_token"]
        self.kv_bytes_per_token: int = facts["kv_bytes_per_token"]
        self.settings: dict[str, str] = facts["settings"]

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name}: its process ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def _ask(self, do: str, **arguments: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()["found"]

    def prefill(self, ids: list[int]) -> float:
        """Seconds until the token after the prompt is known."""
        return float(self._ask("prefill", ids=ids))

    def decode(self, length: int, count: int) -> float:
        """Seconds of ``count`` tokens after the first ``length`` of the prompt."""
        return float(self._ask("decode", length=length, count=count))

    def check(self, ids: list[int]) -> float:
        """Ours only: how well the logits of steps and of a run over the whole text agree."""
        return float(self._ask("check", ids=ids))

    def bandwidth(self) -> float:
        """Of the kind "bandwidth": bytes a second that its threads read together."""
        return float(self._ask("bandwidth"))

    def huge_page_bytes(self) -> int:
        return int(self._ask("huge_page_bytes"))

    def close(self) -> None:
        """End the process: its input ends; it is killed if that is not enough."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()


def huge_page_bytes() -> int:
    """This process's anonymous memory in huge pages, by the kernel's own count."""
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("the kernel does not count AnonHugePages")


class Bandwidth:
    """The memory's read bandwidth, as the profile's roof has it."""

    model_bytes = weight_bytes_per_token = kv_bytes_per_token = 0

    def __init__(self, threads: int) -> None:
        from edgecompress.profile.peaks import Bandwidth as Reads

        self.settings = {"numpy": np.__version__}
        self._reads = Reads(threads)

    def bytes_per_s(self) -> float:
        return self._reads.bytes_per_s()


def make_side(kind: str, name: str, model: Path, threads: int) -> Any:
    if kind == "bandwidth":
        return Bandwidth(threads)
    if kind == "edgecompress":
        from benchmarks.ours_decoder import Ours  # needs our package, which a peer's python may lack

        return Ours(name, model, threads)
    peers = {"genai": Genai, "llama.cpp": LlamaCpp, "openvino": OpenVino}
    return peers[kind](name, model, threads)


def obey(side: Any, command: dict[str, Any]) -> float | int:
    if command["do"] == "bandwidth":
        return float(side.bytes_per_s())
    if command["do"] == "prefill":
        started = time.perf_counter()
        side.prefill(command["ids"])
        return time.perf_counter() - started
    if command["do"] == "decode":
        return float(side.decode(command["length"], command["count"]))
    if command["do"] == "check":
        return float(side.check(command["ids"]))
    if command["do"] == "huge_page_bytes":
        return huge_page_bytes()
    raise ValueError(f"no command {command['do']}")


def main() -> int:
    kind, name, model, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(**said: Any) -> None:
        answers.write(json.dumps(said) + "\n")
        answers.flush()

    try:
        side = make_side(kind, name, Path(model), int(threads))
        answer(**{fact: getattr(side, fact) for fact in _FACTS})
        for line in sys.stdin:
            answer(found=obey(side, json.loads(line)))
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}"[:300])
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
