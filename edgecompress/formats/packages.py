"""The packages that a distribution requires, from its installed metadata, and the versions that are installed.

The metadata is the only source: code never repeats ranges, extras or lists of packages. The runtime does not depend on
``packaging``, so the few operators that pyproject.toml uses are parsed here.
"""

from __future__ import annotations

import ast
import importlib.metadata
import operator
import platform
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edgecompress.types.packages import MODULES, RUNTIME, TORCH

DISTRIBUTION = "edgecompress"
DEVELOPMENT_EXTRAS = ("test", "docs", "dev")  # no command imports their packages

_REQUIREMENT = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*\(?([^;)]*)\)?\s*(?:;(.*))?")
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([^'"]+)['"]""")
_CLAUSE = re.compile(r"(>=|<=|==|!=|>|<)\s*(\d+(?:\.\d+)*)")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_OPERATORS: dict[str, Callable[[tuple[int, ...], tuple[int, ...]], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One package of a distribution's metadata."""

    name: str  # normalized as in PEP 503
    specifier: str  # ">=2.0,<3"; "" admits every version
    extra: str | None = None  # None: the base install
    applies_here: bool = True  # False: its marker excludes this system

    def admits(self, version: str) -> bool:
        """Whether the release numbers of ``version`` fit. Raises ValueError for an unknown operator."""
        installed = _release(version)
        return all(_OPERATORS[comparison](installed, bound) for comparison, bound in _clauses(self.specifier))


def parse_requirement(text: str) -> Requirement | None:
    """Parse a line of ``Requires-Dist`` or of pyproject.toml's dependencies; None for anything else.

    Packages for other systems are included, with ``applies_here`` False. The lower bound comes first.
    """
    match = _REQUIREMENT.fullmatch(text)
    if match is None:
        return None
    extra = _EXTRA.search(match[3] or "")
    clauses = sorted((part.strip() for part in match[2].split(",") if part.strip()), key=_lower_bound_first)
    return Requirement(
        name=normalized(match[1]),
        specifier=",".join(clauses),
        extra=extra[1] if extra is not None else None,
        applies_here=_applies_here(match[3] or ""),
    )


def _applies_here(marker: str) -> bool:
    """Whether a marker admits this system. Only systems and processors are compared; the rest counts as true."""
    values = {
        "sys_platform": sys.platform,
        "platform_machine": platform.machine(),
        "platform_system": platform.system(),
    }

    def holds(node: ast.expr) -> bool:
        if isinstance(node, ast.BoolOp):
            return (all if isinstance(node.op, ast.And) else any)(map(holds, node.values))
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Name) and node.left.id in values:
            same = values[node.left.id] == ast.literal_eval(node.comparators[0])
            return same if isinstance(node.ops[0], ast.Eq) else not same
        return True

    try:
        return holds(ast.parse(marker.strip(), mode="eval").body) if marker.strip() else True
    except SyntaxError:  # an operator of markers that Python does not have, such as ~=
        return True


def parse_requirements(texts: Iterable[str]) -> tuple[Requirement, ...]:
    return tuple(found for text in texts if (found := parse_requirement(text)) is not None)


def requirements(distribution: str = DISTRIBUTION) -> tuple[Requirement, ...]:
    """Of the base install and every extra. Raises PackageNotFoundError if the distribution is not installed."""
    return parse_requirements(importlib.metadata.requires(distribution) or ())


def installed_version(package: str) -> str | None:
    """None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def distribution_of(module: str) -> str:
    """The distribution that installs ``module``, which need not be installed."""
    package = module.partition(".")[0]
    named = next((MODULES[name] for name in (module, package) if name in MODULES), None)
    if named is None and (parts := module.split("."))[1:]:
        named = MODULES.get(".".join(parts[:2]))
    return named or normalized(package)


def install_command(module: str, extras: Sequence[str] = ()) -> str:
    """The pip command that installs ``module``.

    ``extras``: those that the running command needs; if one of them has the package, all are named, else the first
    extra that has it.
    """
    package = distribution_of(module)
    if package in RUNTIME:
        return f"pip install {DISTRIBUTION}"
    try:
        required = requirements()
    except importlib.metadata.PackageNotFoundError:
        required = ()
    holders = [
        each.extra
        for each in required
        if each.name == package and each.extra is not None and each.extra not in DEVELOPMENT_EXTRAS
    ]
    if set(holders) & set(extras):
        return f"pip install '{DISTRIBUTION}[{','.join(extras)}]'"
    return f"pip install '{DISTRIBUTION}[{holders[0]}]'" if holders else f"pip install {package}"


def cpu_torch_command() -> str | None:
    """The pip command that installs PyTorch without CUDA; None where PyPI's build has none: outside x86-64 Linux."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return None
    try:
        wanted = {each.specifier for each in requirements() if each.name == TORCH}
    except importlib.metadata.PackageNotFoundError:
        wanted = set()
    return f"pip install '{TORCH}{min(wanted, default='')}' --index-url \"$PYTORCH_CPU_INDEX\""


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def gpu_build(package: str) -> str:
    """The name that a GPU build of ``package`` would have; it installs the same modules."""
    return f"{package}-gpu"


def _lower_bound_first(clause: str) -> tuple[bool, str]:
    return clause.startswith("<"), clause


def _clauses(specifier: str) -> list[tuple[str, tuple[int, ...]]]:
    clauses = []
    for text in filter(None, specifier.split(",")):
        match = _CLAUSE.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"'{text}' is not a known version clause")
        clauses.append((match[1], _release(match[2])))
    return clauses


def _release(version: str) -> tuple[int, ...]:
    """Release numbers without trailing zeros, so that 2.0 equals 2. Suffixes such as rc1 or +cpu are ignored."""
    match = _RELEASE.match(version)
    numbers = [int(part) for part in match[0].split(".")] if match is not None else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
