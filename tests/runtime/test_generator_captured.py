"""Checkpoints captured and lowered as an export does, generating what transformers generates from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.decoder.generation import generation_settings
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.lower.microsoft import lower
from edgecompress.runtime import load
from edgecompress.types.recipe import StudentRecipe
from tests.conftest import CapturedDecoder
from tests.decoder_bundle import write_decoder_bundle

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["qwen2", "gemma2"])  # gemma2: a window shorter than the texts, and soft-caps
def test_greedy_is_transformers(name: str, tmp_path: Path, captured_decoder: CapturedDecoder) -> None:
    checkpoint, captured = captured_decoder(name)
    student = load_student(StudentRecipe(source=str(checkpoint)))
    graph = lower(captured, tmp_path)
    settings = generation_settings(student, graph, checkpoint / "tokenizer.json")
    files = {"model.onnx": graph.path, "tokenizer.json": checkpoint / "tokenizer.json"}
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    prompts = [np.random.default_rng(i).integers(5, 120, length).tolist() for i, length in enumerate((23, 1, 9))]
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0, "repetition_penalty": 1.2}
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.no_grad():
            made = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        expected.append(made[0, len(prompt) :].tolist())
    with load(write_decoder_bundle(tmp_path / "b", files, settings)) as generator:
        assert isinstance(generator, Generator)
        given = {"max_new_tokens": 24, "temperature": 0.0, "repetition_penalty": 1.2}
        assert [list(text.token_ids) for text in generator.generate(prompts, **given)] == expected
        fast = generator.generate(prompts[0], **given, lookup_tokens=4)
        assert list(fast.token_ids) == expected[0]
