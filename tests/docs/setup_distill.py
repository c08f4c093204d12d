"""Setups for the pages about distillation, serving, labelling and lineage."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.decoder_bundle import SPECIAL, TEMPLATE, tokenizer
from tests.distill import lessons
from tests.docs.setups import setup

ANSWERS = {
    "why is the sky blue?": "air scatters blue light more than red light",
    "what is a checksum?": "a number that shows whether data has changed",
    "what does a compiler do?": "it turns source code into machine code",
    "name a fruit": "an apple",
    "how many legs has a spider?": "eight",
    "say hello": "hello, how are you?",
}


@setup("answering-teacher")
def answering_teacher(folder: Path, bundle: str) -> None:
    """A bundle of a decoder that was trained on ANSWERS only."""
    shutil.copytree(_teacher() / "bundle", folder / bundle)


@setup("untrained-decoder")
def untrained_decoder(folder: Path, path: str, layers: str = "1") -> None:
    """A checkpoint with random weights."""
    save_decoder(folder / path, layers=int(layers))


@setup("sentence-teacher")
def sentence_teacher(folder: Path, path: str) -> None:
    """A sentence encoder with six layers, random weights and a card with a licence."""
    lessons.sentence_teacher(folder / path, num_hidden_layers=6)


@setup("one-thread")
def one_thread(folder: Path) -> contextlib.AbstractContextManager[None]:
    """Let torch use one thread: with models this small, several threads mostly wait for each other."""
    return _environment("OMP_NUM_THREADS", "1")


@setup("stop-server")
def stop_server(folder: Path, pid_file: str) -> contextlib.AbstractContextManager[None]:
    """Stop the page's server if the page fails before it does."""
    return _stopped(folder / pid_file)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _stopped(pid_file: Path) -> Iterator[None]:
    try:
        yield
    finally:
        if pid_file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGTERM)


@cache
def _teacher() -> Path:
    """A folder with the teacher's bundle, created once for all pages."""
    from edgecompress.distill.plan import make_plan
    from edgecompress.distill.run import distill
    from edgecompress.export.pipeline import export
    from edgecompress.types.distill import DistillRecipe, NewStudentRecipe, TeacherRecord, TrainingRecipe
    from edgecompress.types.recipe import QualityRecipe, Recipe, RuntimeRecipe, StudentRecipe

    folder = Path(tempfile.mkdtemp(prefix="edgecompress-docs-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_decoder(folder / "untrained", layers=2)
    pairs = [{"prompt": prompt, "response": response} for prompt, response in ANSWERS.items()]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    recipe = DistillRecipe(
        student=NewStudentRecipe(start=str(folder / "untrained")),
        training=TrainingRecipe(steps=300, batch=6, learning_rate=5e-3),
    )
    record = TeacherRecord(kind="endpoint", name="nobody")
    plan = make_plan(None, recipe, folder / "pairs.jsonl", record)
    distill(plan, folder / "teacher", threads=1)
    exported = Recipe(
        precision="fp32",
        student=StudentRecipe(source=str(folder / "teacher")),
        quality=QualityRecipe(samples=2),
        runtime=RuntimeRecipe(kernels="none"),
    )
    export(exported, folder / "bundle")
    return folder


def save_decoder(folder: Path, layers: int) -> Path:
    """An untrained Qwen2 with a byte-level tokenizer and a chat template."""
    import torch
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=400,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer().save(str(folder / "tokenizer.json"))
    pad, start, end = SPECIAL[:3]
    said = {"pad_token": pad, "bos_token": start, "eos_token": end, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(said | {"model_max_length": 256}))
    return folder
