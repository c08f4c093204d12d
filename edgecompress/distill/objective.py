"""The loss of a batch: the recipe's weighted terms between a trained student and a frozen teacher."""

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
from edgecompress.distill.recording import Heads, record_heads
from edgecompress.distill.shapes import layers_of, taught_by
from edgecompress.distill.task import distill_module, distill_task
from edgecompress.errors import RecipeError
from edgecompress.types.distill import DistillTask, LossRecipe
from edgecompress.types.student import Student

TERMS = ("logits", "hidden", "relations", "embedding", "similarity", "cross_entropy")
PROJECTIONS = "edgecompress_projections"  # added to the student during training if its hidden states are narrower
_VECTORS = ("embedding", "similarity")
_BLACK_BOX = {"cross_entropy": 1.0}


def resolve_loss(recipe: LossRecipe, task: str, spec: DistillTask, *, black_box: bool, rounded: bool) -> LossRecipe:
    """The recipe with every weight filled in. Raises RecipeError for a term that the task does not have."""
    suited = spec.rounded_weights if rounded and spec.rounded_weights is not None else spec.weights
    given = {name: getattr(recipe, name) for name in TERMS}
    if all(weight is None for weight in given.values()):
        chosen: Mapping[str, float] = _BLACK_BOX if black_box else suited
    else:
        chosen = {name: weight for name, weight in given.items() if weight}
    for name in chosen:
        if name not in spec.terms:
            raise RecipeError(
                f"a student of task {task} has no loss '{name}'",
                hint=f"Defaults for this task: {', '.join(spec.weights)}.",
            )
        if black_box and name not in _BLACK_BOX:
            raise RecipeError(
                f"'{name}' needs the teacher's internals, but a black box gives responses only",
                hint="Omit [loss], or use method = 'white-box' with the teacher's checkpoint.",
            )
    weights: dict[str, Any] = {name: chosen.get(name, 0.0) for name in TERMS}
    return replace(recipe, **weights)


def needs_heads(loss: LossRecipe) -> bool:
    return bool(loss.relations)


def vectors_only(loss: LossRecipe) -> bool:
    """Whether the loss needs only one vector per text from the teacher, which is then computed once."""
    return not any(getattr(loss, name) for name in TERMS if name not in _VECTORS)


@dataclass(frozen=True, kw_only=True)
class ModelOutputs:
    """The outputs of one model for a batch; None: not requested."""

    logits: torch.Tensor | None = None
    hidden: tuple[torch.Tensor, ...] = ()  # of each layer, without the embeddings
    heads: tuple[Heads, ...] = ()
    vector: torch.Tensor | None = None


class Objective:
    """The loss of a student and its terms. ``teacher`` None: black box, the data holds the responses."""

    def __init__(
        self,
        loss: LossRecipe,
        described: Student,
        student: torch.nn.Module,
        teacher: torch.nn.Module | None,
        vectors: torch.Tensor | None = None,
    ) -> None:
        """``vectors``, float32 [N, D]: the teacher's vector of each example, if :func:`vectors_only`."""
        self.loss, self.teacher, self.vectors = loss, teacher, vectors
        device = next(student.parameters()).device
        self._next_token = distill_task(described).next_token
        self._pool = distill_module(described).pooler(described, device)
        self._layers: tuple[int, ...] = ()
        self._relation_heads = 0
        if teacher is not None:
            self._layers = taught_by(layers_of(student), layers_of(teacher))
            mine, theirs = _width(student), _width(teacher)
            if needs_heads(loss):
                self._relation_heads = _relation_heads(loss, student, teacher)
            if loss.embedding and mine != theirs:
                raise RecipeError(
                    f"the student's vectors have width {mine}, the teacher's {theirs}: `embedding` needs one width",
                    hint="Keep the teacher's width, or use `similarity` in [loss], which compares cosines.",
                )
            if loss.hidden and mine != theirs and not hasattr(student, PROJECTIONS):
                torch.manual_seed(0)
                widen = (torch.nn.Linear(mine, theirs, bias=False) for _ in self._layers)
                student.add_module(PROJECTIONS, torch.nn.ModuleList(widen).to(device))

    def __call__(self, student: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Each term with a weight, unweighted, float32 []."""
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
            found["embedding"] = vector_distance(_required(near.vector), _required(far.vector), loss.distance)
        if loss.similarity:
            found["similarity"] = similarity_difference(_required(near.vector), _required(far.vector))
        if loss.cross_entropy:
            found["cross_entropy"] = next_token(_required(near.logits), labels)
        return found

    @staticmethod
    def take_off(student: torch.nn.Module) -> None:
        """Remove the projections, which only the loss needs."""
        if hasattr(student, PROJECTIONS):
            delattr(student, PROJECTIONS)

    def total(self, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.stack([getattr(self.loss, name) * value for name, value in parts.items()]).sum()

    def ask(self, model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> ModelOutputs:
        """Run a model on a batch; return the outputs that the loss needs."""
        loss, ids, mask = self.loss, batch["input_ids"], batch["attention_mask"]
        options: dict[str, Any] = {"output_hidden_states": True} if loss.hidden else {}
        if self._next_token:
            options["use_cache"] = False
        with record_heads() as heads:
            out = model(input_ids=ids, attention_mask=mask, **options)
        wants_vector = any(getattr(loss, name) for name in _VECTORS)
        return ModelOutputs(
            logits=out.logits if loss.logits or loss.cross_entropy else None,
            hidden=tuple(out.hidden_states[1:]) if loss.hidden else (),
            heads=tuple(heads),
            vector=self._pool(out.last_hidden_state, mask) if wants_vector and self._pool is not None else None,
        )

    def _of_teacher(self, batch: Mapping[str, torch.Tensor]) -> ModelOutputs:
        if self.vectors is not None:
            return ModelOutputs(vector=self.vectors[batch["numbers"]])
        if self.teacher is None:
            return ModelOutputs()
        with torch.no_grad():
            return self.ask(self.teacher, batch)

    def _logits(self, near: ModelOutputs, far: ModelOutputs, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        a, b = _required(near.logits), _required(far.logits)
        if a.dim() == 2:  # one choice per text
            counted = torch.ones(a.shape[:1], dtype=torch.bool, device=a.device)
            if a.shape[1] == 1:  # a reranker's single score: its sigmoid is a choice between two
                a, b = torch.cat([a, -a], 1) / 2, torch.cat([b, -b], 1) / 2
            return logits_divergence(a, b, counted, self.loss.temperature)
        counted = mask.bool()
        if self._next_token:
            counted = torch.zeros_like(counted)
            counted[:, :-1] = labels[:, 1:] >= 0  # positions whose next token has a loss
        return logits_divergence(a, b, counted, self.loss.temperature)


def _required(value: torch.Tensor | None) -> torch.Tensor:
    assert value is not None
    return value


def _width(model: torch.nn.Module) -> int:
    config: Any = model.config
    return int(config.hidden_size)


def _relation_heads(loss: LossRecipe, student: torch.nn.Module, teacher: torch.nn.Module) -> int:
    """The number of relation heads, which must divide the widths of both models' queries, keys and values."""
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
            hint=f"Set relation_heads to a divisor of {most}.",
        )
    return heads


def weights_of(loss: LossRecipe) -> dict[str, float]:
    """The terms with a weight."""
    return {name: getattr(loss, name) for name in TERMS if getattr(loss, name)}
