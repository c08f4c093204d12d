"""The recipe of a distillation, and its record, which is stored beside the student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompress.types.precision import INT4_WEIGHTS, INT8_DYNAMIC, INT8_STATIC, INT8_WEIGHTS
from edgecompress.types.provenance import ProvenanceRecipe, ResponseFile

RECORD = "distillation.json"
"""File name in a student's folder; holds a :class:`Distillation`."""

WHITE_BOX, BLACK_BOX = "white-box", "black-box"
METHODS = (WHITE_BOX, BLACK_BOX)
SCHEDULES = ("cosine", "linear", "constant")
DISTANCES = ("cosine", "mse")
NO_ROUNDING = "none"
INT8_PER_TENSOR = "int8-per-tensor"
ROUNDINGS = (NO_ROUNDING, INT4_WEIGHTS, INT8_WEIGHTS, INT8_DYNAMIC, INT8_STATIC, INT8_PER_TENSOR)
"""Rounding of weights and activations in training: like export's precisions of the same name, and int8 weights with one
scale per tensor, the default of other tools."""


@dataclass(frozen=True, kw_only=True)
class NewStudentRecipe:
    """``[student]``: layers of the teacher, a smaller model of its kind, or a checkpoint; default: half its layers."""

    layers: int | tuple[int, ...] | None = None  # a number, spread evenly, or a list; with ``hidden`` a number
    hidden: int | None = None  # width of a new student with random weights
    intermediate: int | None = None  # of a new student; None: in proportion
    heads: int | None = None
    kv_heads: int | None = None
    start: str | None = None  # a checkpoint to start from; excludes the other keys


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """``[loss]``: weights of the loss terms. If none is given, the defaults of the teacher's task apply."""

    logits: float | None = None  # KL divergence from the teacher's distribution
    hidden: float | None = None  # squared difference of hidden states, layer by layer
    relations: float | None = None  # KL of query-query, key-key and value-value relations (MiniLMv2, arXiv 2012.15828)
    embedding: float | None = None  # distance of pooled vectors
    similarity: float | None = None  # squared difference of the cosines between the texts of a batch
    cross_entropy: float | None = None  # on the data itself; decoders only
    temperature: float = 1.0  # of ``logits``
    distance: str = "cosine"  # of ``embedding``: one of DISTANCES
    relation_heads: int | None = None  # None: the teacher's attention heads


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """``[training]``. Minutes are converted to steps by this machine's speed before training starts."""

    steps: int | None = None  # None without minutes: 1000
    minutes: float | None = None
    batch: int = 32
    # None: 5e-4 for kept layers, 2e-3 for random weights, 1e-4 from ``start``, 2e-5 for a decoder with rounding
    learning_rate: float | None = None
    warmup: float = 0.06  # share of the steps
    schedule: str = "cosine"  # one of SCHEDULES
    weight_decay: float = 0.01
    dropout: float = 0.0  # in training only; config.json keeps the teacher's value
    max_length_tokens: int = 128
    seed: int = 0
    rounding: str = NO_ROUNDING  # one of ROUNDINGS
    block_size: int = 128  # weights per scale, for the weight-only roundings


@dataclass(frozen=True, kw_only=True)
class DistillTask:
    """Distillation defaults of a task. Terms are fields of :class:`LossRecipe`."""

    terms: frozenset[str]  # that the recipe may weight
    weights: Mapping[str, float]  # defaults
    rounded_weights: Mapping[str, float] | None = None  # defaults with rounding; None: the same
    # Next-token prediction: texts are joined and cut into windows, and prompt/response pairs can be used.
    next_token: bool = False
    blocks_tables: bool = False  # export quantizes embedding tables in blocks if it quantizes weights in blocks
    rounded_learning_rate: float | None = None  # from a checkpoint, with rounding; None: the same as without


@dataclass(frozen=True, kw_only=True)
class DistillRecipe:
    """What `edgecompress distill --student` reads."""

    method: str | None = None  # one of METHODS; None: black-box if the teacher is behind an API
    student: NewStudentRecipe = field(default_factory=NewStudentRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    provenance: ProvenanceRecipe = field(default_factory=ProvenanceRecipe)
    schema_version: int = 1


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """A teacher, or the checkpoint that a student started from. ``files`` (name -> sha256) and ``licence`` (from its
    card) are set for checkpoints only."""

    kind: str  # "checkpoint" or "endpoint"
    name: str  # the folder's name, the hub id, or the endpoint's model
    revision: str | None = None
    licence: str | None = None
    base_model: str | None = None  # from its card
    endpoint: str | None = None  # scheme, host and path; never a key
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """The training data."""

    name: str
    sha256: str
    examples: int
    tokens: int  # that the student saw, repeats counted
    responses: ResponseFile | None = None  # where they came from, if a file had some already


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a student was made. ``weights`` are the sha256 of its files: the record applies only to these weights."""

    tool_version: str
    method: str  # WHITE_BOX or BLACK_BOX
    teacher: TeacherRecord
    start: TeacherRecord | None = None  # the checkpoint that it started from, if not the teacher
    data: DataRecord
    recipe_sha256: str
    seed: int
    steps: int
    seconds: float
    versions: Mapping[str, str]  # of the packages that made it
    weights: Mapping[str, str]
    provenance: ProvenanceRecipe  # as declared
    schema_version: int = 1
