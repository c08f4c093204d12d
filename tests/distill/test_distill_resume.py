"""A training that was cut off goes on, and comes to the same weights; the same seed does, too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli import main
from edgecompress.distill.plan import make_plan
from edgecompress.distill.trainer import DistillTrainer
from edgecompress.distill.work import WorkFolder
from edgecompress.errors import InterruptedRunError
from tests.distill.lessons import TRAINING, recipe, recipe_file, taught

pytestmark = pytest.mark.slow


def test_a_seed_gives_the_same_weights(teacher: Path, texts: Path, tmp_path: Path) -> None:
    again = recipe(training=replace(TRAINING, steps=6, seed=1))
    for name in ("a", "b"):
        taught(make_plan(str(teacher), again, texts), tmp_path / name)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    other = recipe(training=replace(TRAINING, steps=6, seed=2))
    taught(make_plan(str(teacher), other, texts), tmp_path / "c")
    assert (tmp_path / "a" / "model.safetensors").read_bytes() != (tmp_path / "c" / "model.safetensors").read_bytes()


KILLED = """
import os, sys
from edgecompress.cli import main
from edgecompress.distill import trainer
before = trainer.DistillTrainer.compute_loss
def compute_loss(self, *args, **named):
    if self.state.global_step == 17:
        os.kill(os.getpid(), 9)
    return before(self, *args, **named)
trainer.DistillTrainer.compute_loss = compute_loss
sys.exit(main(sys.argv[1:]))
"""


def test_a_killed_training_goes_on_as_if_nothing_had_been(
    teacher: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL at step 17 of 30, not at a checkpoint, with terms of every kind and under rounding: the same bits."""
    text = "[student]\nlayers = 2\n[loss]\nembedding = 1\nhidden = 0.5\nrelations = 0.5\n"
    text += '[training]\nbatch = 8\nsteps = 30\nrounding = "int4-weights"\nblock_size = 16\n'
    given = recipe_file(tmp_path / "r.toml", text)
    command = ["distill", "--teacher", str(teacher), "--student", str(given), "--data", str(texts), "--threads", "1"]
    arguments = [sys.executable, "-c", KILLED, *command, "-o", str(tmp_path / "s")]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == -9
    assert not (tmp_path / "s").exists()
    assert main([*command, "-o", str(tmp_path / "s")]) == 2
    assert "Use --resume to continue it" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "s"), "--seed", "5", "--resume"]) == 2
    assert "its recipe changed" in capsys.readouterr().err
    assert main([*command, "-o", str(tmp_path / "s"), "--resume"]) == 0
    assert main([*command, "-o", str(tmp_path / "whole")]) == 0
    resumed, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("s", "whole"))
    assert resumed == whole
    curves = [json.loads((tmp_path / name / "loss.json").read_text()) for name in ("s", "whole")]
    assert curves[0] == curves[1]
    assert not list(tmp_path.glob(".*"))


def test_a_checkpoint_that_was_not_written_to_its_end_is_passed_over(tmp_path: Path) -> None:
    work = WorkFolder(tmp_path / "s")
    for step, state in ((8, "{}"), (16, '{"glo'), (24, None)):
        folder = work.path / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    last = work.last_checkpoint()
    assert last is not None
    assert last.name == "checkpoint-8"
    assert [path.name for path in work.path.iterdir()] == ["checkpoint-8"]


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SIGINT raises, also where a shell started the tests in the background, and what Python drops is not printed."""
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # pytest would count it as a warning
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def swallowed_interrupt() -> None:
    """Ctrl-C while a weak reference's callback runs: Python prints what the handler raises, and drops it."""

    class Referred:
        pass

    referred = Referred()
    kept = weakref.ref(referred, lambda _: signal.raise_signal(signal.SIGINT))
    del referred
    assert kept() is None


@pytest.mark.usefixtures("heard")
@pytest.mark.parametrize("swallowed", [False, True])
@pytest.mark.parametrize(("stop", "left"), [(2, "nothing was written"), (17, "up to step 16 is in")])
def test_an_interruption_says_what_is_left(
    teacher: Path, texts: Path, tmp_path: Path, stop: int, left: str, swallowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, steps = DistillTrainer.compute_loss, []

    def compute_loss(self: DistillTrainer, *arguments: Any, **named: Any) -> Any:
        steps.append(self.state.global_step)
        if self.state.global_step == stop:
            if not swallowed:
                raise KeyboardInterrupt
            swallowed_interrupt()
        return before(self, *arguments, **named)

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]

    plan = make_plan(str(teacher), recipe(), texts)
    with monkeypatch.context() as patched:
        patched.setattr(DistillTrainer, "compute_loss", compute_loss)
        with pytest.raises(InterruptedRunError, match=left) as caught:
            taught(plan, tmp_path / "s")
    assert steps[-1] == stop
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    left_there = stop == 17
    assert bool(list(tmp_path.glob(".*"))) == ("--resume" in caught.value.hint) == left_there
    taught(plan, tmp_path / "s", resume=left_there)
    taught(plan, tmp_path / "whole")
    resumed, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("s", "whole"))
    assert resumed == whole


@pytest.mark.usefixtures("heard")
def test_a_swallowed_interrupt_ends_it_before_the_first_step(teacher: Path, texts: Path, tmp_path: Path) -> None:
    """While the teacher loads."""
    shown: list[str] = []

    def show(text: str) -> None:
        shown.append(text)
        if text == "loading the teacher":
            swallowed_interrupt()

    with pytest.raises(InterruptedRunError, match="nothing was written"):
        taught(make_plan(str(teacher), recipe(), texts), tmp_path / "s", show=show)
    assert shown == ["loading the teacher"]
    assert [path.name for path in tmp_path.iterdir()] == ["texts.jsonl"]
