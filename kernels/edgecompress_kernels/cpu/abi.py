"""Operators, structs and constants that the C shims, the kernels and the graphs share, defined once.

abi_header.py turns them into the C header ``abi.h`` that shim.h includes, and into compile-time checks of the shims'
operators. The kernels take their parameters' offsets from here, and edgecompress the constants that it writes into a
graph. It imports only the standard library, so importers need neither numba nor a compiler.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class ElementType(IntEnum):
    """ONNX's element types of tensors. ANY: the operator checks the type itself."""

    ANY = 0
    FLOAT = 1
    UINT8 = 2
    INT8 = 3
    INT32 = 6
    INT64 = 7
    FLOAT16 = 10


class Presence(IntEnum):
    """ONNX Runtime's input kinds. VARIADIC: this input and any number of further ones."""

    REQUIRED = 0
    OPTIONAL = 1
    VARIADIC = 2


class StepKind(IntEnum):
    """The operation of a step in a DecoderLayer's program."""

    NORM = 1
    ADD = 2
    GATE = 3
    MATMUL = 4
    ATTENTION = 5


class StepField(IntEnum):
    """A column of a DecoderLayer's program, int64 [1 + steps, fields], with one step per row.

    MADE is the value that the step writes; X to BIAS are those that it reads, -1 for none; CONSTANT holds a float32's
    bits.
    """

    KIND = 0
    MADE = 1
    X = 2
    OTHER = 3
    SCALES = 4
    ZEROS = 5
    BIAS = 6
    INPUTS = 7
    OUTPUTS = 8
    BITS = 9
    BLOCK = 10
    CONSTANT = 11


MOST_VALUES = 64  # maximum values of a program
MOST_STEPS = 20
SPLIT = 512  # keys per separate softmax; a multiple of the kernels' blocks
FLOAT_ROWS = 8  # rows per part of attention over all keys, with a float32 cache
INT8_ROWS = 24  # the same with an int8 cache
ENCODER_ROWS = 32  # maximum rows per part of an encoder layer; a multiple of eight
SPARE_ROWS = 8  # extra rows of an encoder's buffers, which a register tile can write past the last row
PANEL = 48  # adjacent outputs of an encoder's matrix product: three vectors


class CType(Enum):
    """The C type of a member."""

    POINTER = "void *"
    BYTES = "const char *"
    INTEGER = "int64_t"
    NUMBER = "Number"  # a float32 in the low half
    FLOAT = "float"
    FLAG = "int"
    KERNEL = "Kernel"


Members = tuple[tuple[str, CType], ...]


def _members(ctype: CType, *names: str) -> Members:
    return tuple((name, ctype) for name in names)


@dataclass(frozen=True, kw_only=True)
class Struct:
    """A struct's members, in order."""

    name: str
    members: Members

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.members)


@dataclass(frozen=True, kw_only=True)
class Parameters(Struct):
    """A kernel's parameters: 64-bit slots, read by offset."""

    @property
    def offsets(self) -> dict[str, int]:
        """Member -> bytes from the struct's start."""
        return {name: 8 * i for i, name in enumerate(self.names)}


@dataclass(frozen=True, kw_only=True)
class Variants(Struct):
    """A row of a library's tables of kernels, which end with a row of zeros."""

    tables: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """A node's attribute, and the member of the operator's state that holds it."""

    name: str
    member: str
    ctype: CType = CType.INTEGER


@dataclass(frozen=True, kw_only=True)
class State:
    """An operator's state between calls: its attributes, in order, and ``others``."""

    name: str
    attributes: tuple[Attribute, ...]
    others: Members = ()


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of an operator."""

    name: str
    element: ElementType = ElementType.FLOAT
    presence: Presence = Presence.REQUIRED


@dataclass(frozen=True, kw_only=True)
class Operator:
    """A custom op: its name in a graph, and in C the name of its OrtCustomOp."""

    name: str
    symbol: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    state: State | None = None
    kernel: str = ""  # name for users; "" for an op that belongs to another kernel
    in_place_of: str = ""  # this and the next are descriptions for users
    takes: str = ""

    def input_index(self, name: str) -> int:
        """Raises KeyError if there is no such input."""
        return {tensor.name: i for i, tensor in enumerate(self.inputs)}[name]

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(attribute.name for attribute in self.state.attributes) if self.state is not None else ()


MATMUL_PARAMETERS = Parameters(
    name="MatmulParameters",
    members=(
        *_members(CType.POINTER, "x", "q", "x_scales", "x_sums", "weights", "scales", "zeros", "bias", "y"),
        *_members(CType.INTEGER, "rows", "outputs", "inputs", "tiles_per_part"),
        *_members(CType.INTEGER, "columns"),  # per part of the quantization, whole blocks
    ),
)
ATTENTION_PARAMETERS = Parameters(
    name="AttentionParameters",
    members=(
        *_members(CType.BYTES, "q_in", "k_in", "v_in"),
        *_members(CType.INTEGER, "q_stride", "k_stride", "v_stride"),  # bytes per token
        *_members(CType.POINTER, "past", "positions", "cos", "sin"),  # past: int64 [B]
        *_members(CType.INTEGER, "rotary"),  # rotary width, 0 for none
        *_members(CType.POINTER, "q", "keys", "values", "partials", "y"),  # q: float32 [B, Hk, T * group, D]
        *_members(CType.INTEGER, "batch", "tokens", "kv_heads", "group", "capacity", "window"),
        *_members(CType.NUMBER, "scale"),
        *_members(CType.INTEGER, "rows_per_part", "row_parts", "splits", "split_parts"),
        *_members(CType.POINTER, "k_scales", "v_scales"),  # for an int8 cache (attention_int8.py): float32 [Hk, D]
    ),
)
ROWS_PARAMETERS = Parameters(
    name="RowsParameters",
    members=(
        *_members(CType.POINTER, "x", "other", "y"),
        *_members(CType.INTEGER, "width", "columns"),
        *_members(CType.NUMBER, "constant"),  # epsilon or alpha
    ),
)
ENCODER_PARAMETERS = Parameters(
    name="EncoderParameters",
    members=(
        *_members(CType.POINTER, "x", "q", "q_scales", "q_sums", "keys", "values", "starts"),
        *_members(CType.POINTER, "out_smooth", "out_weights", "out_columns", "norm1_gamma", "norm1_beta"),
        *_members(CType.POINTER, "up_smooth", "up_weights", "up_columns"),
        *_members(CType.POINTER, "down_smooth", "down_weights", "down_columns", "norm2_gamma", "norm2_beta"),
        *_members(CType.POINTER, "qkv_smooth", "qkv_weights", "qkv_columns"),
        *_members(CType.POINTER, "y", "next_q", "next_q_scales", "next_q_sums", "next_keys", "next_values"),
        *_members(CType.INTEGER, "tokens", "rows_per_part"),
        *_members(CType.NUMBER, "scale", "epsilon1", "epsilon2"),
    ),
)
PARAMETERS = (MATMUL_PARAMETERS, ATTENTION_PARAMETERS, ROWS_PARAMETERS, ENCODER_PARAMETERS)

MATMUL_VARIANTS = Variants(
    name="Matmul",
    tables=("MATMULS",),
    members=(
        *_members(CType.INTEGER, "bits", "block"),
        *_members(CType.FLAG, "half", "zeros"),
        *_members(CType.KERNEL, "quantize", "multiply"),
    ),
)
ATTENTION_VARIANTS = Variants(
    name="Attention",
    tables=("ATTENTIONS", "INT8_ATTENTIONS"),
    members=(*_members(CType.INTEGER, "size"), *_members(CType.KERNEL, "append", "attend", "combine")),
)
ENCODER_VARIANTS = Variants(
    name="Encoder",
    tables=("ENCODERS",),
    members=(
        *_members(CType.INTEGER, "hidden", "heads", "feed_forward", "weight_bits"),
        *_members(CType.KERNEL, "project", "layer"),
    ),
)
VARIANTS = (MATMUL_VARIANTS, ATTENTION_VARIANTS, ENCODER_VARIANTS)
ROW_KERNELS = ("add_rows", "normalize_rows", "gate_rows")  # in every library

MATMUL_STATE = State(
    name="MatmulState",
    attributes=(
        Attribute(name="K", member="inputs"),
        Attribute(name="N", member="outputs"),
        Attribute(name="bits", member="bits"),
        Attribute(name="block_size", member="block"),
    ),
)
ATTENTION_STATE = State(
    name="AttentionState",
    attributes=(
        Attribute(name="num_heads", member="heads"),
        Attribute(name="kv_num_heads", member="kv_heads"),
        Attribute(name="head_size", member="size"),
        Attribute(name="local_window_size", member="window"),
        Attribute(name="scale", member="scale", ctype=CType.FLOAT),
    ),
    others=_members(CType.FLAG, "int8"),  # whether the cache is int8
)
ENCODER_STATE = State(
    name="EncoderState",
    attributes=(
        Attribute(name="hidden", member="hidden"),
        Attribute(name="num_heads", member="heads"),
        Attribute(name="feed_forward", member="feed_forward"),
        Attribute(name="weight_bits", member="weight_bits"),
        Attribute(name="scale", member="scale", ctype=CType.FLOAT),
        Attribute(name="epsilon1", member="epsilon1", ctype=CType.FLOAT),
        Attribute(name="epsilon2", member="epsilon2", ctype=CType.FLOAT),
    ),
)
STATES = (MATMUL_STATE, ATTENTION_STATE, ENCODER_STATE)


def _caches(element: ElementType) -> tuple[Tensor, ...]:
    """Cache and position inputs of the operators with a cache."""
    return (
        Tensor(name="past_key", element=element),
        Tensor(name="past_value", element=element),
        Tensor(name="last", element=ElementType.INT32),
        Tensor(name="total", element=ElementType.INT32),
        Tensor(name="cos", presence=Presence.OPTIONAL),
        Tensor(name="sin", presence=Presence.OPTIONAL),
        Tensor(name="positions", element=ElementType.INT64, presence=Presence.OPTIONAL),
    )


def _attended(element: ElementType) -> tuple[Tensor, ...]:
    return (Tensor(name="y"), Tensor(name="key", element=element), Tensor(name="value", element=element))


def _linear(name: str, presence: Presence = Presence.REQUIRED) -> tuple[Tensor, ...]:
    return (
        Tensor(name=f"{name}_weights", element=ElementType.INT8, presence=presence),
        Tensor(name=f"{name}_columns", presence=presence),
        Tensor(name=f"{name}_smooth", presence=Presence.OPTIONAL),
    )


_PROJECTIONS = Tensor(name="projections", element=ElementType.UINT8)
_STARTS = Tensor(name="starts", element=ElementType.INT64)
_MASK = Tensor(name="mask", element=ElementType.INT64)
_QUERY = (
    Tensor(name="q"),
    Tensor(name="k", presence=Presence.OPTIONAL),
    Tensor(name="v", presence=Presence.OPTIONAL),
)
_PROGRAM = (
    Tensor(name="k_scale", presence=Presence.OPTIONAL),
    Tensor(name="v_scale", presence=Presence.OPTIONAL),
    Tensor(name="program", element=ElementType.INT64),
    Tensor(name="values", element=ElementType.ANY, presence=Presence.VARIADIC),
)

MATMUL = Operator(
    name="MatMulBlocks",
    symbol="MATMUL",
    inputs=(
        Tensor(name="x"),
        Tensor(name="weights", element=ElementType.UINT8),
        Tensor(name="scales", element=ElementType.ANY),  # float32 or float16
        Tensor(name="zeros", element=ElementType.UINT8, presence=Presence.OPTIONAL),
        Tensor(name="bias", presence=Presence.OPTIONAL),
    ),
    outputs=(Tensor(name="y"),),
    state=MATMUL_STATE,
    kernel="matmul",
    in_place_of="MatMulNBits at accuracy level 4",
    takes="int4 and int8 in blocks of 32 to 256, with or without zero points",
)
ATTENTION = Operator(
    name="CachedAttention",
    symbol="ATTENTION",
    inputs=(*_QUERY, *_caches(ElementType.FLOAT)),
    outputs=_attended(ElementType.FLOAT),
    state=ATTENTION_STATE,
    kernel="attention",
    in_place_of="GroupQueryAttention",
    takes="head sizes 16 to 256 in steps of 16, any group, windows, non-interleaved rotary embeddings, float32 cache",
)
INT8_ATTENTION = Operator(
    name="CachedAttentionInt8",
    symbol="INT8_ATTENTION",
    inputs=(*_QUERY, *_caches(ElementType.INT8), Tensor(name="k_scale"), Tensor(name="v_scale")),
    outputs=_attended(ElementType.INT8),
    state=ATTENTION_STATE,
    kernel="attention",
    in_place_of="GroupQueryAttention with --kv-cache int8",
    takes="the same, with an int8 cache with per-channel scales in GroupQueryAttention's format",
)
DECODER_LAYER = Operator(
    name="DecoderLayer",
    symbol="DECODER_LAYER",
    inputs=(*_caches(ElementType.FLOAT), *_PROGRAM),
    outputs=_attended(ElementType.FLOAT),
    state=ATTENTION_STATE,
    kernel="layer",
    in_place_of="the two above, and the RMS norms, residuals and SiLU gate between them",
    takes="whole layers as one op, found in the graph",
)
INT8_DECODER_LAYER = Operator(
    name="DecoderLayerInt8",
    symbol="INT8_DECODER_LAYER",
    inputs=(*_caches(ElementType.INT8), *_PROGRAM),
    outputs=_attended(ElementType.INT8),
    state=ATTENTION_STATE,
)
PACK_TOKENS = Operator(
    name="PackTokens",
    symbol="PACK_TOKENS",
    inputs=(_MASK,),
    outputs=(Tensor(name="rows", element=ElementType.INT64), _STARTS),
)
ENCODER_PROJECTIONS = Operator(
    name="EncoderProjections",
    symbol="ENCODER_PROJECTIONS",
    inputs=(Tensor(name="x"), *_linear("qkv")),
    outputs=(_PROJECTIONS,),
    state=ENCODER_STATE,
)
ENCODER_LAYER = Operator(
    name="EncoderLayer",
    symbol="ENCODER_LAYER",
    inputs=(
        Tensor(name="x"),
        _PROJECTIONS,
        _STARTS,
        *_linear("out"),
        *_linear("up"),
        *_linear("down"),
        *(Tensor(name=name) for name in ("norm1_gamma", "norm1_beta", "norm2_gamma", "norm2_beta")),
        *_linear("qkv", Presence.OPTIONAL),  # of the next layer
    ),
    outputs=(Tensor(name="y"), _PROJECTIONS),
    state=ENCODER_STATE,
    kernel="encoder",
    in_place_of="an int8-dynamic layer: attention, LayerNormalization, GELU",
    takes="BERT-style layers, head sizes 16 to 256 in steps of 16; packed texts of any lengths",
)
SUM_TOKENS = Operator(
    name="SumTokens", symbol="SUM_TOKENS", inputs=(Tensor(name="x"), _STARTS), outputs=(Tensor(name="sums"),)
)
UNPACK_TOKENS = Operator(
    name="UnpackTokens",
    symbol="UNPACK_TOKENS",
    inputs=(Tensor(name="x"), Tensor(name="rows", element=ElementType.INT64), _MASK),
    outputs=(Tensor(name="y"),),
)
OPERATORS = (
    MATMUL, ATTENTION, INT8_ATTENTION, DECODER_LAYER, INT8_DECODER_LAYER,
    PACK_TOKENS, ENCODER_PROJECTIONS, ENCODER_LAYER, SUM_TOKENS, UNPACK_TOKENS,
)  # fmt: skip
"""All operators, in the order in which a library registers them."""
