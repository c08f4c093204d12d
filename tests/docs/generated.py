"""The parts of the docs that are made from the code: ``python -m tests.docs.generated --write`` renews them.

A page holds such a part between ``<!-- generated: NAME -->`` and ``<!-- end -->``. GENERATED has one function a name;
a test holds every page to it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Union

from tests.docs import cli_reference, meanings
from tests.docs.pages import DOCS

if TYPE_CHECKING:
    from edgecompress.types.target import Target

_PART = re.compile(r"(<!-- generated: (?P<name>[\w-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)
_SCALARS = {str: "string", int: "integer", float: "number", bool: "boolean", Any: "any"}


def render(text: str) -> str:
    """A page with its generated parts made anew. Raises KeyError for a name that GENERATED does not have."""
    return _PART.sub(lambda part: f"{part[1]}\n{GENERATED[part['name']]().strip()}\n\n{part[4]}", text)


def names_in(text: str) -> list[str]:
    """The generated parts of a page."""
    return [part["name"] for part in _PART.finditer(text)]


def targets() -> str:
    from edgecompress.targets import find_target, known_targets

    rows = []
    for name in known_targets():
        target = find_target(name)
        rows.append([code(name), target.title, target.arch, _codes(target.backends), _was_run(target)])
    return table(["Target", "Hardware", "CPU", "Backends, the default first", "Bundles were run"], rows)


def architectures() -> str:
    from edgecompress.kinds.architectures import architectures as known

    by_kind: dict[str, list[Any]] = {}
    for kind, architecture in known().values():
        by_kind.setdefault(kind, []).append(architecture)
    parts = []
    for kind, members in by_kind.items():
        supported = sorted((a for a in members if a.refused is None), key=lambda a: a.name)
        parts.append(f"### {kind.capitalize()}: {len(supported)} supported\n")
        by_note: dict[str, list[str]] = {}
        for each in supported:
            by_note.setdefault(each.note, []).append(each.name)
        parts += [f"{_codes(names)}\n" for note, names in by_note.items() if not note]
        parts += [f"With a remark ({note}): {_codes(names)}\n" for note, names in by_note.items() if note]
    refused = [(a.name, kind, a.refused) for kind, a in known().values() if a.refused is not None]
    parts.append(f"### Refused: {len(refused)}\n")
    parts.append(table(["Architecture", "Kind", "Why"], [[code(name), kind, why] for name, kind, why in refused]))
    return "\n".join(parts)


def tasks() -> str:
    from edgecompress.kinds import kinds

    return table(["Kind", "Tasks"], [[kind.name, _codes(kind.tasks)] for kind in kinds().values()])


def precisions() -> str:
    from edgecompress.types.precision import PRECISIONS

    rows = []
    for name, precision in PRECISIONS.items():
        rows.append(
            [
                code(name),
                precision.weights,
                precision.activations or "float",
                "yes" if precision.calibrated else "no",
                "yes" if precision.searched else "no",
            ]
        )
    return table(["Precision", "Weights", "What layers read", "Calibrated", "`auto` tries it"], rows)


def recipe_keys() -> str:
    from edgecompress.types.recipe import Recipe

    return _tables(Recipe, meanings.RECIPE, _flags())


def target_keys() -> str:
    from edgecompress.types.target import Target

    return _keys(Target, meanings.TARGET)


def manifest_keys() -> str:
    from edgecompress.types.bundle import Manifest, ModelRecord, TargetRecord, Variant

    parts = []
    for title, cls in (
        ("The document", Manifest),
        ("An entry of `models`", ModelRecord),
        ("An entry of `variants`", Variant),
        ("`target`", TargetRecord),
    ):
        parts.append(f"### {title}\n\n{_keys(cls, meanings.MANIFEST[cls.__name__])}\n")
    return "\n".join(parts)


def schemas() -> str:
    from edgecompress.formats.schema import PUBLISHED

    _require_all("schemas", PUBLISHED, meanings.SCHEMAS)
    rows = [[code(f"{name}.schema.json"), meanings.SCHEMAS[name]] for name in PUBLISHED]
    return table(["Schema", "Of"], rows)


def kernels() -> str:
    from edgecompress.cli.kernels import ROWS

    rows = [[code(r["kernel"]), code(r["op"]), r["in_place_of"], r["takes"]] for r in ROWS]
    return table(["`--kernels`", "Op in the graph", "In place of", "Takes"], rows)


def instruction_sets() -> str:
    from edgecompress_kernels.cpu.isa import ISAS

    rows = [[code(isa.name), _codes(isa.needs), ", ".join(isa.verified_on)] for isa in ISAS.values()]
    return table(["Instruction set", "The CPU needs", "Verified on"], rows)


def exit_codes() -> str:
    return table(["Code", "Meaning"], [[str(number), text] for number, text in meanings.EXIT_CODES.items()])


def errors() -> str:
    from edgecompress import errors as module

    classes = sorted(filter(_is_error, vars(module).values()), key=lambda cls: (cls.exit_code, cls.__name__))
    rows = [[str(cls.exit_code), code(cls.__name__), code(cls.__bases__[0].__name__), _summary(cls)] for cls in classes]
    return table(["Code", "Class", "Derived from", "Raised when"], rows)


GENERATED: dict[str, Callable[[], str]] = {
    "commands": cli_reference.commands,
    "targets": targets,
    "architectures": architectures,
    "tasks": tasks,
    "precisions": precisions,
    "recipe-keys": recipe_keys,
    "target-keys": target_keys,
    "manifest-keys": manifest_keys,
    "schemas": schemas,
    "kernels": kernels,
    "instruction-sets": instruction_sets,
    "exit-codes": exit_codes,
    "errors": errors,
}
"""What stands between the marks, by name."""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; pipes in a cell are escaped."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    return f"`{text}`"


def _codes(texts: Iterable[str]) -> str:
    return ", ".join(map(code, texts))


def _was_run(target: Target) -> str:
    """What the project has run of its bundles, as the README says."""
    if target.accelerator != "cpu":
        return "not yet, on any GPU"
    return "yes" if target.arch == "x86_64" else "in an emulator (qemu-user); not yet on the device"


def _is_error(value: Any) -> bool:
    from edgecompress.errors import EdgeCompressError

    return isinstance(value, type) and issubclass(value, EdgeCompressError) and value is not EdgeCompressError


def _summary(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def _tables(cls: type, texts: Mapping[str, Mapping[str, str]], flags: Mapping[str, str]) -> str:
    """The keys of a document and of each of its tables, with their flags."""
    hints = typing.get_type_hints(cls)
    tables = [f.name for f in dataclasses.fields(cls) if dataclasses.is_dataclass(hints[f.name])]
    parts = [_keys(cls, texts[""], flags=flags, leave_out=tables)]
    for name in tables:
        parts.append(f"\n### `[{name}]`\n\n{_keys(hints[name], texts[name], flags=flags, prefix=f'{name}.')}")
    return "\n".join(parts)


def _keys(
    cls: type,
    texts: Mapping[str, str],
    *,
    flags: Mapping[str, str] | None = None,
    leave_out: Sequence[str] = (),
    prefix: str = "",
) -> str:
    """One row a key. Raises ValueError if ``texts`` says too much or too little."""
    hints = typing.get_type_hints(cls)
    fields = [f for f in dataclasses.fields(cls) if f.name not in leave_out]
    _require_all(cls.__name__, [f.name for f in fields], texts)
    headers = ["Key", "Type", "Default", "Meaning", *(["Flag"] if flags is not None else [])]
    rows = []
    for f in fields:
        row = [code(f.name), _type(hints[f.name]), _default(f), texts[f.name]]
        if flags is not None:
            row.append(flags.get(prefix + f.name, ""))
        rows.append(row)
    return table(headers, rows)


def _require_all(what: str, names: Iterable[str], texts: Mapping[str, str]) -> None:
    missing, extra = sorted(set(names) - set(texts)), sorted(set(texts) - set(names))
    if missing or extra:
        raise ValueError(f"tests/docs/meanings.py, {what}: without a meaning {missing}, no longer there {extra}")


def _type(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    if origin is tuple:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return f"list of {_plural(arguments[0])}"
        return f"{len(arguments)} {_plural(arguments[0])}"
    if origin is not None and issubclass(origin, Mapping):
        return f"table of {_plural(arguments[1])}"
    return "table" if dataclasses.is_dataclass(hint) else _SCALARS[hint]


def _plural(hint: Any) -> str:
    return "anything" if hint is Any else f"{_type(hint)}s"


def _default(f: dataclasses.Field[Any]) -> str:
    if f.default_factory is not dataclasses.MISSING:
        return "empty"
    if f.default is dataclasses.MISSING:
        return "required"
    if f.default is None:
        return "unset"
    return code(json.dumps(f.default)) if f.default != () else "empty"


def _flags() -> dict[str, str]:
    """Key of a recipe, as in ``quality.min_fidelity`` -> its flags."""
    from edgecompress.cli import export

    parser = argparse.ArgumentParser(add_help=False)
    export.add_arguments(parser)
    options = {action.dest: action.option_strings for action in parser._actions}
    return {
        f"{group}.{field}" if group else field: _codes(options[flag]) or code(flag.upper())
        for flag, (group, field) in export._FIELDS.items()
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Renew what is generated in docs/**/*.md.")
    parser.add_argument(
        "--write", action="store_true", help="write the pages; otherwise list those that are stale, with exit code 1"
    )
    options = parser.parse_args()
    stale = 0
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := render(text)) != text:
            print(f"{'wrote' if options.write else 'stale:'} {page.relative_to(DOCS.parent)}")
            if options.write:
                page.write_text(new, encoding="utf-8")
            stale += not options.write
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
