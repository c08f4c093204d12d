"""Texts and pairs as token ids, their order, and batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgecompress.distill.data import Pair, TeachingData
from edgecompress.errors import UsageError

IGNORED = -100  # label without a loss
_BUCKET_BATCHES = 32  # batches sorted by length together, so that each has little padding
_FEWEST_LAST_TOKENS = 16  # of a token stream: a shorter last window is dropped


@dataclass(frozen=True, kw_only=True)
class Example:
    """``scored``: index of the first token with a loss; those before it are the prompt."""

    ids: tuple[int, ...]
    scored: int = 0


def make_examples(data: TeachingData, tokenizer: Any, max_length_tokens: int, *, next_token: bool) -> list[Example]:
    """Truncated texts; with ``next_token``, windows of the concatenated texts, or pairs with a loss on the response.

    Raises UsageError if no example is left.
    """
    if data.pairs and not next_token:
        raise UsageError(
            f"{data.name} has prompts and responses, but the student is an encoder",
            hint='Give lines of {"text": "…"}.',
        )
    if data.pairs:
        found = [_pair(pair, tokenizer, max_length_tokens) for pair in data.pairs]
        found = [example for example in found if example.scored < len(example.ids)]
    elif next_token:
        found = _windows(data.texts, tokenizer, max_length_tokens)
    else:
        encoded = tokenizer(list(data.texts), truncation=True, max_length=max_length_tokens)["input_ids"]
        found = [Example(ids=tuple(ids)) for ids in encoded if ids]
    if not found:
        raise UsageError(
            f"no example in {data.name} fits into {max_length_tokens} tokens",
            hint="Raise max_length_tokens in [training], or use other data.",
        )
    return found


def _windows(texts: Sequence[str], tokenizer: Any, size: int) -> list[Example]:
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    stream: list[int] = []
    for start in range(0, len(texts), 512):
        for ids in tokenizer(list(texts[start : start + 512]), verbose=False)["input_ids"]:
            stream += [*ids, *(() if ids[-1:] == end else end)]
    windows = [tuple(stream[start : start + size]) for start in range(0, len(stream), size)]
    if len(windows) > 1 and len(windows[-1]) < _FEWEST_LAST_TOKENS:
        windows.pop()
    return [Example(ids=ids) for ids in windows if len(ids) > 1]


def _pair(pair: Pair, tokenizer: Any, size: int) -> Example:
    """The prompt, in the chat template if there is one, the response, and an end token unless it was cut off."""
    end = tokenizer.eos_token or ""
    if tokenizer.chat_template:
        opened = tokenizer.apply_chat_template(list(pair.messages), tokenize=False, add_generation_prompt=True)
        prompt = tokenizer(opened, add_special_tokens=False)["input_ids"]
    else:
        prompt = tokenizer("\n".join(m["content"] for m in pair.messages) + "\n")["input_ids"]
        if end and prompt[-1:] == [tokenizer.eos_token_id]:
            prompt = prompt[:-1]
    response = tokenizer((pair.response or "") + ("" if pair.cut else end), add_special_tokens=False)["input_ids"]
    return Example(ids=tuple([*prompt, *response][:size]), scored=len(prompt))


def order_of(lengths: Sequence[int], batch: int, steps: int, seed: int) -> npt.NDArray[np.int64]:
    """Indices of examples, int64 [steps * batch]: shuffled again each epoch, with like lengths in one batch.

    The same arguments give the same order, so a resumed run continues exactly.
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(lengths)
    wanted, chosen = steps * batch, np.zeros(0, dtype=np.int64)
    while len(chosen) < wanted:
        chosen = np.concatenate([chosen, rng.permutation(len(sizes))])
    chosen = chosen[:wanted]
    batches: list[npt.NDArray[np.int64]] = []
    for start in range(0, wanted, batch * _BUCKET_BATCHES):
        bucket = chosen[start : start + batch * _BUCKET_BATCHES]
        rows = bucket[np.argsort(sizes[bucket], kind="stable")].reshape(-1, batch)
        batches += list(rows[rng.permutation(len(rows))])
    return np.concatenate(batches)


class Order(torch.utils.data.Sampler[int]):
    """A fixed order as a sampler for torch's DataLoader."""

    def __init__(self, indices: npt.NDArray[np.int64]) -> None:
        self._indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices.tolist())

    def __len__(self) -> int:
        return len(self._indices)


class ExampleSet(torch.utils.data.Dataset[tuple[int, Example]]):
    """Examples with their indices, which select the teacher's vectors."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[int, Example]:
        return index, self.examples[index]


def collate(rows: Sequence[tuple[int, Example]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """input_ids, attention_mask and labels, int64 [B, T], and the examples' indices, int64 [B]."""
    width = max(len(example.ids) for _, example in rows)
    ids = torch.full((len(rows), width), pad_token_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.long)
    for place, (_, example) in enumerate(rows):
        row = torch.tensor(example.ids, dtype=torch.long)
        ids[place, : len(row)] = row
        mask[place, : len(row)] = 1
        labels[place, example.scored : len(row)] = row[example.scored :]
    numbers = torch.tensor([number for number, _ in rows], dtype=torch.long)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels, "numbers": numbers}


def digest(examples: Sequence[Example]) -> str:
    """sha256 of the token ids, to check that a resumed run has the same examples."""
    found = hashlib.sha256()
    for example in examples:
        found.update(np.array([example.scored, *example.ids], dtype=np.int64).tobytes())
    return found.hexdigest()
