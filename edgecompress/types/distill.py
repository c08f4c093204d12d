"""What a distillation is asked for, and the record of one that lies beside the student's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompress.types.precision import INT4_WEIGHTS, INT8_DYNAMIC, INT8_STATIC, INT8_WEIGHTS
from edgecompress.types.provenance import ProvenanceRecipe, ResponseFile

RECORD = "distillation.json"
"""Of a student's folder: a :class:`Distillation`."""

WHITE_BOX, BLACK_BOX = "white-box", "black-box"
METHODS = (WHITE_BOX, BLACK_BOX)
SCHEDULES = ("cosine", "linear", "constant")
DISTANCES = ("cosine", "mse")
NO_ROUNDING = "none"
INT8_PER_TENSOR = "int8-per-tensor"
ROUNDINGS = (NO_ROUNDING, INT4_WEIGHTS, INT8_WEIGHTS, INT8_DYNAMIC, INT8_STATIC, INT8_PER_TENSOR)
"""What a student may learn under: what export rounds to by these names, and weights with one int8 scale a tensor, as
other tools' defaults have them."""


@dataclass(frozen=True, kw_only=True)
class NewStudentRecipe:
    """``[student]``: layers of the teacher, or a smaller one of its kind, or a checkpoint; nothing: half its layers."""

    layers: int | tuple[int, ...] | None = None  # how many, evenly spread, or which; with ``hidden``: how many
    hidden: int | None = None  # a new student of that width, from random weights
    intermediate: int | None = None  # of a new student; None: in proportion
    heads: int | None = None
    kv_heads: int | None = None
    start: str | None = None  # a checkpoint to go on from, which the other keys then say nothing of


@dataclass(frozen=True, kw_only=True)
class LossRecipe:
    """``[loss]``: weights of what is added up. Where none is given they are those that suit the teacher's task."""

    logits: float | None = None  # KL divergence from the teacher's distribution
    hidden: float | None = None  # squared difference of hidden states, layer by layer
    relations: float | None = None  # KL of query-query, key-key and value-value relations (MiniLMv2, arXiv 2012.15828)
    embedding: float | None = None  # of pooled vectors
    similarity: float | None = None  # squared difference of the cosines between the texts of a batch
    cross_entropy: float | None = None  # on the data itself; of decoders
    temperature: float = 1.0  # of ``logits``
    distance: str = "cosine"  # of ``embedding``: one of DISTANCES
    relation_heads: int | None = None  # None: the teacher's attention heads


@dataclass(frozen=True, kw_only=True)
class TrainingRecipe:
    """``[training]``. Minutes are turned into steps by this machine's speed, before the first one."""

    steps: int | None = None  # None, and no minutes: 1000
    minutes: float | None = None
    batch: int = 32
    # None: 5e-4 where layers are kept, 2e-3 from random weights, 1e-4 from ``start``, 2e-5 for a decoder under rounding
    learning_rate: float | None = None
    warmup: float = 0.06  # share of the steps
    schedule: str = "cosine"  # one of SCHEDULES
    weight_decay: float = 0.01
    dropout: float = 0.0  # while it learns; config.json keeps the teacher's
    max_length_tokens: int = 128
    seed: int = 0
    rounding: str = NO_ROUNDING  # one of ROUNDINGS
    block_size: int = 128  # weights that share one scale, of the weight-only roundings


@dataclass(frozen=True, kw_only=True)
class DistillTask:
    """How students of a task are taught. Terms are those of :class:`LossRecipe`."""

    terms: frozenset[str]  # that can be weighed
    weights: Mapping[str, float]  # where the recipe gives none
    rounded_weights: Mapping[str, float] | None = None  # under rounding; None: the same
    # Each token is learned from those before it: texts lie in a row, in windows, and responses to prompts can teach.
    next_token: bool = False
    blocks_tables: bool = False  # export keeps embedding tables in blocks too, where it keeps weights in blocks
    rounded_learning_rate: float | None = None  # from a checkpoint, under rounding; None: as without


@dataclass(frozen=True, kw_only=True)
class DistillRecipe:
    """What `edgecompress distill --student` reads."""

    method: str | None = None  # one of METHODS; None: black-box where the teacher is behind an API
    student: NewStudentRecipe = field(default_factory=NewStudentRecipe)
    loss: LossRecipe = field(default_factory=LossRecipe)
    training: TrainingRecipe = field(default_factory=TrainingRecipe)
    provenance: ProvenanceRecipe = field(default_factory=ProvenanceRecipe)
    schema_version: int = 1


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """Who taught, or whose weights a student began with. ``files`` (name -> sha256) and ``licence`` (of its card) are
    those of a checkpoint."""

    kind: str  # "checkpoint" or "endpoint"
    name: str  # the folder's name, the hub id, or the endpoint's model
    revision: str | None = None
    licence: str | None = None
    base_model: str | None = None  # of its card
    endpoint: str | None = None  # scheme, host and path; never a key
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class DataRecord:
    """What it was taught on."""

    name: str
    sha256: str
    examples: int
    tokens: int  # that the student saw, repeats counted
    responses: ResponseFile | None = None  # where they came from, if a file had some already


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a student was made. ``weights`` are the sha256 of its files: the record is of these weights and no others."""

    tool_version: str
    method: str  # WHITE_BOX or BLACK_BOX
    teacher: TeacherRecord
    start: TeacherRecord | None = None  # the checkpoint that it began as, where that is not of its teacher
    data: DataRecord
    recipe_sha256: str
    seed: int
    steps: int
    seconds: float
    versions: Mapping[str, str]  # packages that made it
    weights: Mapping[str, str]
    provenance: ProvenanceRecipe  # as declared
    schema_version: int = 1
