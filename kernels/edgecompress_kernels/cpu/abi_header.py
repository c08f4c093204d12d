"""Generates C from abi.py: the shims' header, and compile-time checks of the shims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import IntEnum

from edgecompress_kernels.cpu import abi
from edgecompress_kernels.cpu.abi import CType, Members, Operator, Parameters, State, Variants

_CONSTANTS = ("MOST_VALUES", "MOST_STEPS", "SPLIT", "FLOAT_ROWS", "INT8_ROWS", "ENCODER_ROWS", "SPARE_ROWS", "PANEL")
_READ = {CType.INTEGER: "attribute_int", CType.FLOAT: "attribute_float"}


def header() -> str:
    """The text of ``abi.h``."""
    blocks = [
        "/* Made by abi_header.py of the table in abi.py. */",
        *_enums(),
        *(_struct(parameters.name, parameters.members) for parameters in abi.PARAMETERS),
        *(_assertions(parameters) for parameters in abi.PARAMETERS),
        *(_variants(variants) for variants in abi.VARIANTS),
        kernel_declarations(abi.ROW_KERNELS),
        *(_state(state) for state in abi.STATES),
        *(_operator(operator) for operator in abi.OPERATORS),
    ]
    return "\n\n".join(blocks) + "\n"


def registration() -> str:
    """The text of ``add_operators``, which adds each operator to a domain."""
    symbols = ", ".join(f"&{operator.symbol}" for operator in abi.OPERATORS)
    return "\n".join(
        [
            "static Status *add_operators(void *domain) {",
            f"    const CustomOp *const ops[] = {{{symbols}}};",
            "    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++) TRY(add_to_domain(domain, ops[i]));",
            "    return NULL;",
            "}",
        ]
    )


def checks() -> str:
    """The text of ``check_operators``, which compiles to nothing if the OrtCustomOps match abi.py, and fails otherwise.

    It calls functions with the attribute ``error``, which is a compile error unless the optimizer removes the call:
    what each operator returns about its tensors is a constant to the optimizer.
    """
    failures, calls = [], []
    for number, (condition, message) in enumerate(_conditions()):
        failures.append(f'__attribute__((error("{message}"))) extern void mismatch_{number}(void);')
        calls.append(f"    if (!({condition})) mismatch_{number}();")
    return "\n".join([*failures, "static void check_operators(void) {", *calls, "}"])


def variant_row(variants: Variants, **values: int | str) -> str:
    """A C initializer for a row of the tables of ``variants``. Raises ValueError if ``values`` are not its members."""
    if tuple(values) != variants.names:
        raise ValueError(f"{variants.name} has the members {', '.join(variants.names)}, not {', '.join(values)}")
    return f"{{{', '.join(f'.{name} = {value}' for name, value in values.items())}}}"


def kernel_declarations(names: Sequence[str]) -> str:
    return "\n".join(f"extern void {name}(void *, size_t);" for name in names)


def _enums() -> Iterator[str]:
    yield _enum("", abi.ElementType)
    yield _enum("", abi.Presence)
    yield _enum("STEP_", abi.StepKind)
    yield f"{_enum('FIELD_', abi.StepField)}\nenum {{ FIELDS = {len(abi.StepField)} }};"
    yield f"enum {{ {', '.join(f'{name} = {getattr(abi, name)}' for name in _CONSTANTS)} }};"


def _enum(prefix: str, members: type[IntEnum]) -> str:
    return f"enum {{ {', '.join(f'{prefix}{member.name} = {member.value}' for member in members)} }};"


def _struct(name: str, members: Members) -> str:
    lines = [f"    {ctype.value}{'' if ctype.value.endswith('*') else ' '}{member};" for member, ctype in members]
    return "\n".join([f"typedef struct {name} {{", *lines, f"}} {name};"])


def _assertions(parameters: Parameters) -> str:
    name = parameters.name
    found = [
        f"_Static_assert(offsetof({name}, {member}) == {offset} && sizeof((({name} *)0)->{member}) == 8, "
        f'"kernels read 8 bytes at {offset} as {name}.{member}");'
        for member, offset in parameters.offsets.items()
    ]
    size = 8 * len(parameters.offsets)
    return "\n".join([*found, f'_Static_assert(sizeof({name}) == {size}, "{name} has {size} bytes in abi.py");'])


def _variants(variants: Variants) -> str:
    tables = [f"extern const {variants.name} {table}[]; /* the last row is zero */" for table in variants.tables]
    return "\n".join([_struct(variants.name, variants.members), *tables])


def _state(state: State) -> str:
    """A state's struct, and a macro that reads a node's attributes into it."""
    members = tuple((attribute.member, attribute.ctype) for attribute in state.attributes)
    read = [f'    TRY({_READ[a.ctype]}(info, "{a.name}", &(state)->{a.member}));' for a in state.attributes]
    symbol = state.name.removesuffix("State").upper()
    macro = " \\\n".join([f"#define READ_{symbol}_ATTRIBUTES(info, state) do {{", *read, "} while (0)"])
    return f"{_struct(state.name, members + state.others)}\n{macro}"


def _operator(operator: Operator) -> str:
    """An operator's input indices, number of inputs, and name."""
    places = [f"{operator.symbol}_{tensor.name.upper()}" for tensor in operator.inputs]
    return "\n".join(
        [
            f"enum {{ {', '.join(places)}, {operator.symbol}_INPUTS }};",
            f'#define {operator.symbol}_NAME "{operator.name}"',
            f"static const CustomOp {operator.symbol};",
        ]
    )


def _conditions() -> Iterator[tuple[str, str]]:
    """Yield (C condition on an OrtCustomOp, message if it is false)."""
    for operator in abi.OPERATORS:
        op = operator.symbol
        where = f"abi.py: {operator.name}"
        yield f'!__builtin_strcmp({op}.name(&{op}), "{operator.name}")', f"{where} has another name in C"
        for side, tensors in (("input", operator.inputs), ("output", operator.outputs)):
            count = len(tensors)
            yield f"{op}.{side}_count(&{op}) == {count}", f"{where} has {count} {side}s, which C does not have"
            for i, tensor in enumerate(tensors):
                element, presence = tensor.element.name, tensor.presence.name
                yield (
                    f"{op}.{side}_type(&{op}, {i}) == {element} && {op}.{side}_kind(&{op}, {i}) == {presence}",
                    f"{where}: {side} {i}, {tensor.name}, is {element} and {presence}, which it is not in C",
                )
