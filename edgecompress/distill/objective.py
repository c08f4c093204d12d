"""The loss of a batch: what the recipe weighs, between a student that learns and a teacher that does not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from edgecompress.distill.losses import (
    hidden_difference,
    logits_divergence,
    next_token,
    relation_divergence,
    similarity_difference,
    vector_distance,
)
from edgecompress.distill.recording import Heads, recording
from edgecompress.distill.shapes import layers_of, taught_by
from edgecompress.errors import RecipeError
from edgecompress.kinds.encoder.capture import Encoder
from edgecompress.types.distill import LossRecipe
from edgecompress.types.student import Student

TERMS = ("logits", "hidden", "relations", "embedding", "similarity", "cross_entropy")
PROJECTIONS = "edgecompress_projections"  # a module of the student while it learns, where its states are narrower
_OF_TASK: Mapping[str, Mapping[str, float]] = {
    "sentence-similarity": {"embedding": 1.0},
    "feature-extraction": {"hidden": 1.0, "relations": 1.0},
    "text-generation": {"logits": 1.0},
    "question-answering": {"hidden": 1.0},
}
_DECODER_UNDER_ROUNDING = {"logits": 1.0, "hidden": 1.0}  # not shown to beat logits alone: ADR 0023
_OF_HEADS = {"logits": 1.0, "hidden": 1.0}
_VECTORS = ("embedding", "similarity")
_TASKS_WITH_LOGITS = ("text-generation", "text-classification", "text-ranking", "token-classification", "fill-mask")


def resolve_loss(recipe: LossRecipe, task: str, *, black_box: bool, rounded: bool) -> LossRecipe:
    """With every weight a number. Raises RecipeError for a term that the task does not have."""
    given = {name: getattr(recipe, name) for name in TERMS}
    if all(weight is None for weight in given.values()):
        chosen: Mapping[str, float] = {"cross_entropy": 1.0} if black_box else _OF_TASK.get(task, _OF_HEADS)
        if rounded and not black_box and task == "text-generation":
            chosen = _DECODER_UNDER_ROUNDING
    else:
        chosen = {name: weight for name, weight in given.items() if weight}
    decodes = task == "text-generation"
    for name in chosen:
        known = {
            "logits": task in _TASKS_WITH_LOGITS,
            "embedding": task == "sentence-similarity",
            "similarity": task == "sentence-similarity",
            "cross_entropy": decodes,
        }.get(name, True)
        if not known:
            raise RecipeError(
                f"a student of task {task} has no loss '{name}'",
                hint=f"What suits it: {', '.join(_OF_TASK.get(task, _OF_HEADS))}.",
            )
        if black_box and name != "cross_entropy":
            raise RecipeError(
                f"'{name}' compares with the teacher's insides, and a black box shows its responses only",
                hint="Leave [loss] out, or give method = 'white-box' and the teacher's checkpoint.",
            )
    weights: dict[str, Any] = {name: chosen.get(name, 0.0) for name in TERMS}
    return replace(recipe, **weights)


def needs_heads(loss: LossRecipe) -> bool:
    return bool(loss.relations)


def vectors_only(loss: LossRecipe) -> bool:
    """Whether all that is asked of the teacher is one vector a text, which is then asked for once."""
    return not any(getattr(loss, name) for name in TERMS if name not in _VECTORS)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What one model says of a batch; None: it was not asked."""

    logits: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()  # of each layer, the embeddings' not among them
    heads: tuple[Heads, ...] = ()
    vector: torch.Tensor | None = None


class Objective:
    """Loss of a student and its parts. ``teacher`` None: there is none but the data (black box)."""

    def __init__(
        self,
        loss: LossRecipe,
        described: Student,
        student: torch.nn.Module,
        teacher: torch.nn.Module | None,
        vectors: torch.Tensor | None = None,
    ) -> None:
        """``vectors``, float32 [N, D]: the teacher's, by example, where :func:`vectors_only`."""
        self.loss, self.teacher, self.vectors = loss, teacher, vectors
        device = next(student.parameters()).device
        self._pool = Encoder(torch.nn.Identity(), described).to(device) if described.pooling else None
        self._layers: tuple[int, ...] = ()
        self._relation_heads = 0
        if teacher is not None:
            self._layers = taught_by(layers_of(student), layers_of(teacher))
            mine, theirs = _width(student), _width(teacher)
            if needs_heads(loss):
                self._relation_heads = _relation_heads(loss, student, teacher)
            if loss.embedding and mine != theirs:
                raise RecipeError(
                    f"vectors of {mine} numbers cannot be those of {theirs}: the student ships without a projection",
                    hint="Keep the teacher's width, or weigh `similarity` in [loss], which compares cosines.",
                )
            if loss.hidden and mine != theirs and not hasattr(student, PROJECTIONS):
                torch.manual_seed(0)
                widen = (torch.nn.Linear(mine, theirs, bias=False) for _ in self._layers)
                student.add_module(PROJECTIONS, torch.nn.ModuleList(widen).to(device))

    def __call__(self, student: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each term that has a weight, unweighted, float32 []."""
        loss, mask, labels = self.loss, batch["attention_mask"], batch["labels"]
        near = self.ask(student, batch)
        far = self._of_teacher(batch)
        found: dict[str, torch.Tensor] = {}
        if loss.logits:
            found["logits"] = self._logits(near, far, mask, labels)
        if loss.hidden:
            widen: Any = getattr(student, PROJECTIONS, None)
            states = near.hidden if widen is None else tuple(w(h) for w, h in zip(widen, near.hidden, strict=True))
            pairs = [(h, far.hidden[layer]) for h, layer in zip(states, self._layers, strict=True)]
            found["hidden"] = torch.stack([hidden_difference(a, b, mask) for a, b in pairs]).mean()
        if loss.relations:
            found["relations"] = relation_divergence(near.heads[-1], far.heads[-1], mask, self._relation_heads)
        if loss.embedding:
            found["embedding"] = vector_distance(_there(near.vector), _there(far.vector), loss.distance)
        if loss.similarity:
            found["similarity"] = similarity_difference(_there(near.vector), _there(far.vector))
        if loss.cross_entropy:
            found["cross_entropy"] = next_token(_there(near.logits), labels)
        return found

    @staticmethod
    def take_off(student: torch.nn.Module) -> None:
        """Remove what only the loss needed."""
        if hasattr(student, PROJECTIONS):
            delattr(student, PROJECTIONS)

    def total(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([getattr(self.loss, name) * value for name, value in parts.items()]).sum()

    def ask(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Told:
        """Run a model on a batch, and keep what the loss reads."""
        loss, ids, mask = self.loss, batch["input_ids"], batch["attention_mask"]
        options: dict[str, Any] = {"output_hidden_states": True} if loss.hidden else {}
        if _decodes(model):
            options["use_cache"] = False
        with recording() as heads:
            out = model(input_ids=ids, attention_mask=mask, **options)
        wants_vector = any(getattr(loss, name) for name in _VECTORS)
        return Told(
            logits=out.logits if loss.logits or loss.cross_entropy else None,
            hidden=tuple(out.hidden_states[1:]) if loss.hidden else (),
            heads=tuple(heads),
            vector=self.pooled(out.last_hidden_state, mask) if wants_vector else None,
        )

    def pooled(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """As the bundle will: sentence-transformers' pooling, [B, D]."""
        assert self._pool is not None
        assert self._pool.pooling is not None
        return self._pool.pool(self._pool.pooling, hidden, mask)

    def _of_teacher(self, batch: Mapping[str, torch.Tensor]) -> Told:
        if self.vectors is not None:
            return Told(vector=self.vectors[batch["numbers"]])
        if self.teacher is None:
            return Told()
        with torch.no_grad():
            return self.ask(self.teacher, batch)

    def _logits(self, near: Told, far: Told, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        a, b = _there(near.logits), _there(far.logits)
        if a.dim() == 2:  # one choice a text
            counted = torch.ones(a.shape[:1], dtype=torch.bool, device=a.device)
            if a.shape[1] == 1:  # a reranker's one score: the sigmoid makes it a choice of two
                a, b = torch.cat([a, -a], 1) / 2, torch.cat([b, -b], 1) / 2
            return logits_divergence(a, b, counted, self.loss.temperature)
        counted = mask.bool()
        if _decodes(self.teacher):
            counted = torch.zeros_like(counted)
            counted[:, :-1] = labels[:, 1:] >= 0  # the positions whose next token is scored
        return logits_divergence(a, b, counted, self.loss.temperature)


def _there(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def _decodes(model: Any) -> bool:
    return "CausalLM" in type(model).__name__ or "LMHead" in type(model).__name__


def _width(model: torch.nn.Module) -> int:
    config: Any = model.config
    return int(config.hidden_size)


def _relation_heads(loss: LossRecipe, student: torch.nn.Module, teacher: torch.nn.Module) -> int:
    """A number that divides what both models' queries, keys and values are wide."""
    widths = []
    configs: list[Any] = [student.config, teacher.config]
    for config in configs:
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shared = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        widths += [config.num_attention_heads * size, shared * size]
    most = math.gcd(*widths)
    heads = loss.relation_heads or math.gcd(int(configs[1].num_attention_heads), most)
    if most % heads:
        raise RecipeError(
            f"{heads} relation heads do not divide widths of {', '.join(map(str, dict.fromkeys(widths)))}",
            hint=f"Give relation_heads that divide {most}.",
        )
    return heads


def weights_of(loss: LossRecipe) -> dict[str, float]:
    """The terms that count."""
    return {name: getattr(loss, name) for name in TERMS if getattr(loss, name)}
