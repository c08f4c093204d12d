"""Parts of ``bench_distill``: the texts, students that learn alone, and figures with their intervals."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional

from benchmarks.small_decoder import Corpus, Settings, load_corpus, token_stream
from edgecompress.capture.model import load_model
from edgecompress.distill.objective import Objective
from edgecompress.distill.plan import Plan
from edgecompress.distill.rounding import Rounding
from edgecompress.distill.run import load_pair
from edgecompress.distill.tokenizers import load_tokenizer
from edgecompress.distill.trainer import Lesson, train
from edgecompress.distill.work import WorkFolder
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.encoder.capture import Encoder
from edgecompress.types.recipe import StudentRecipe

Array = np.ndarray[Any, np.dtype[np.float64]]
Figure = dict[str, float]

MAX_TOKENS = 32  # of an encoder's text
HELD_OUT = 1000  # texts that vectors are compared on
_SHORTEST, _LONGEST = 60, 400  # characters
_PROSE = 0.8  # share of letters and spaces
_SIMCSE_TEMPERATURE = 0.05  # Gao, Yao and Chen, arXiv 2104.08821
_RESAMPLES = 2000
_NEIGHBOURS = 10


def corpus_in(folder: Path) -> Corpus:
    """Read once: finding every docstring of the packages takes minutes."""
    path = folder / "corpus.json"
    if not path.exists():
        part = folder / ".corpus.json.part"
        part.write_text(json.dumps(asdict(load_corpus(Settings()))), encoding="utf-8")
        part.replace(path)
    found = json.loads(path.read_text(encoding="utf-8"))
    return Corpus(train=tuple(found["train"]), held_out=tuple(found["held_out"]))


def write_texts(folder: Path) -> tuple[Path, list[str]]:
    """Paragraphs for an encoder: a file of those to learn from, and held-out ones, evenly from all that there are."""
    corpus = corpus_in(folder)
    path = folder / "paragraphs.jsonl"
    learned = _paragraphs(corpus.train)
    known = set(learned)
    held_out = [text for text in _paragraphs(corpus.held_out) if text not in known]
    write_lines(path, learned)
    return path, [held_out[i * len(held_out) // HELD_OUT] for i in range(min(HELD_OUT, len(held_out)))]


def _paragraphs(documents: Sequence[str]) -> list[str]:
    flat = (" ".join(part.split()) for document in documents for part in document.split("\n\n"))
    prose = (t for t in flat if _SHORTEST <= len(t) <= _LONGEST)
    return list(dict.fromkeys(t for t in prose if sum(c.isalpha() or c == " " for c in t) / len(t) > _PROSE))


def write_documents(folder: Path) -> Path:
    path = folder / "documents.jsonl"
    write_lines(path, corpus_in(folder).train)
    return path


def write_lines(path: Path, texts: Sequence[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


class Contrastive(Objective):
    """SimCSE without labels: a text is itself under another dropout, and not the others of its batch."""

    def __call__(self, student: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        vectors = [functional.normalize(self._vector(student, batch), dim=-1) for _ in range(2)]
        scores = vectors[0] @ vectors[1].T / _SIMCSE_TEMPERATURE
        return {"embedding": functional.cross_entropy(scores, torch.arange(len(scores)))}

    def _vector(self, student: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        vector = self.ask(student, batch).vector
        assert vector is not None
        return vector


def learn_alone(
    plan: Plan, work: Path, make: Callable[..., Objective], order: Any, show: Callable[[str], None]
) -> tuple[Any, float]:
    """The very student of a plan, on the same texts in the same order, by an objective that has no teacher; seconds.

    Both stay beside ``work``, and are taken from there if they are there.
    """
    _, student = load_pair(plan)
    known = work.with_suffix(".pt")
    if known.exists():
        found = torch.load(known)
        student.load_state_dict(found["weights"])
        return student.eval(), found["seconds"]
    training = plan.recipe.training
    rate = training.learning_rate
    assert rate is not None
    folder = WorkFolder(work)
    folder.path.mkdir(parents=True, exist_ok=True)
    lesson = Lesson(
        examples=plan.examples,
        order=order,
        pad_token_id=plan.tokenizer.pad_token_id,
        objective=make(plan.recipe.loss, plan.origin, student, None),
        recipe=training,
        learning_rate=rate,
        rounding=None,
    )
    began = time.perf_counter()
    train(student, lesson, folder, show)
    seconds = time.perf_counter() - began
    folder.remove()
    torch.save({"weights": student.state_dict(), "seconds": seconds}, known)
    return student.eval(), seconds


def load(folder: Path) -> Any:
    return load_model(load_student(StudentRecipe(source=str(folder))), "sdpa")


def vectors_of(model: Any, checkpoint: Path, texts: Sequence[str], rounding: Rounding | None = None) -> Array:
    """Pooled as the checkpoint says, [N, D]; in batches of one length, so that padding has no part in a range."""
    described = load_student(StudentRecipe(source=str(checkpoint)))
    encoder = Encoder(model, described).eval()
    ids = load_tokenizer(checkpoint)(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    found: Array = np.zeros((len(texts), 0))
    by_length: dict[int, list[int]] = {}
    for place, row in enumerate(ids):
        by_length.setdefault(len(row), []).append(place)
    with torch.no_grad(), rounding.applied() if rounding is not None else nullcontext():
        for places in by_length.values():
            for start in range(0, len(places), 32):
                rows = places[start : start + 32]
                batch = torch.tensor([ids[place] for place in rows])
                out = encoder(batch, torch.ones_like(batch))[0].double().numpy()
                if not found.shape[1]:
                    found = np.zeros((len(texts), out.shape[1]))
                found[rows] = out
    return found


def cosines(a: Array, b: Array) -> Array:
    """Row by row."""
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def neighbours_kept(reference: Array, vectors: Array) -> Array:
    """Of each text, the share of its ten nearest that are among its ten nearest."""
    nearest = []
    for x in (reference, vectors):
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        similarity = unit @ unit.T
        np.fill_diagonal(similarity, -np.inf)
        nearest.append(np.argsort(-similarity, axis=1, kind="stable")[:, :_NEIGHBOURS])
    return np.array([len(set(a) & set(b)) / _NEIGHBOURS for a, b in zip(*(n.tolist() for n in nearest), strict=True)])


def held_out_stream(folder: Path, checkpoint: Path, tokens: int) -> torch.Tensor:
    return token_stream(Tokenizer.from_file(str(checkpoint / "tokenizer.json")), corpus_in(folder).held_out)[:tokens]


def window_losses(model: Any, stream: torch.Tensor, window: int, rounding: Rounding | None = None) -> Array:
    """Nats a token of each window of held-out text."""
    found = []
    model.eval()
    with torch.no_grad(), rounding.applied() if rounding is not None else nullcontext():
        for rows in _windows(stream, window).split(_rows_at_once(rounding)):
            logits = model(input_ids=rows, use_cache=False).logits[:, :-1]
            loss = functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
            found.append(loss.view(len(rows), -1).mean(1))
    return torch.cat(found).double().numpy()


def window_divergences(reference: Any, model: Any, stream: torch.Tensor, window: int, rounding: Rounding) -> Array:
    """KL in nats a token of each window of held-out text, from the reference to the model as it is rounded."""
    found = []
    with torch.no_grad(), rounding.applied():
        for rows in _windows(stream, window).split(_rows_at_once(rounding)):
            far, near = (m.eval()(input_ids=rows, use_cache=False).logits.log_softmax(-1) for m in (reference, model))
            found.append((far.exp() * (far - near)).sum(-1).mean(1))
    return torch.cat(found).double().numpy()


def _windows(stream: torch.Tensor, window: int) -> torch.Tensor:
    return stream[: len(stream) // window * window].view(-1, window)


def _rows_at_once(rounding: Rounding | None) -> int:
    """One where inputs are rounded: their range is that of a text, as it will be."""
    return 1 if rounding is not None and rounding.rounds_inputs else 16


def interval(of: Callable[[Any], float], count: int, seed: int = 0) -> list[float]:
    """The 95 % bootstrap interval of ``of(rows)`` over which of ``count`` held-out texts there happened to be."""
    rng = np.random.default_rng(seed)
    values = [of(rng.integers(count, size=count)) for _ in range(_RESAMPLES)]
    return [round(float(np.percentile(values, q)), 5) for q in (2.5, 97.5)]


def mean_with_interval(values: Array) -> dict[str, Any]:
    return {
        "mean": round(float(values.mean()), 5),
        "ci95": interval(lambda rows: float(values[rows].mean()), len(values)),
    }


def perplexity_with_interval(losses: Array) -> dict[str, Any]:
    return {
        "perplexity": round(math.exp(losses.mean()), 4),
        "ci95": interval(lambda rows: math.exp(losses[rows].mean()), len(losses)),
    }


def recovered(before: Array, after: Array, whole: Array | None = None) -> dict[str, Any]:
    """The share of what rounding loses that learning under it gives back: of cosines lost, or of perplexity.

    ``before`` and ``after`` are losses a text; with ``whole``, those of the unrounded model, perplexities are taken.
    """

    def share(rows: Any) -> float:
        if whole is None:
            return float(1 - after[rows].mean() / before[rows].mean())
        gap = [math.exp(x[rows].mean()) - math.exp(whole[rows].mean()) for x in (before, after)]
        return 1 - gap[1] / gap[0]

    everything = np.arange(len(before))
    return {"share": round(share(everything), 4), "ci95": interval(share, len(before))}


def with_dropout(plan: Plan, share: float) -> Plan:
    recipe = plan.recipe
    return replace(plan, recipe=replace(recipe, training=replace(recipe.training, dropout=share)))
