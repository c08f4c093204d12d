"""Looks up a plug-in by name: a package whose modules have agreed names, ours or somebody's entry point.

A part of a plug-in is a module of its package, imported when it is asked for: a device that runs a bundle imports
``runtime`` of a kind and ``load`` of a backend, and never what an export needs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from edgecompress.errors import HostError, UsageError, nearest


@dataclass(frozen=True)
class PlugIn:
    """A package by its name in a registry."""

    name: str
    package: str

    def part(self, module: str) -> ModuleType:
        """Its module of that name. Raises UsageError if the package has none."""
        if not self.has(module):
            raise UsageError(f"'{self.name}' has no {module}", hint=f"{self.package}.{module} would be it.")
        return importlib.import_module(f"{self.package}.{module}")

    def has(self, module: str) -> bool:
        return importlib.util.find_spec(f"{self.package}.{module}") is not None


@cache
def plug_ins(group: str, ours: tuple[tuple[str, str], ...]) -> Mapping[str, PlugIn]:
    """Name -> plug-in: ours, in their order, then those of the entry points ``group``, by name.

    Raises HostError for an entry point that takes the name of another.
    """
    from importlib.metadata import entry_points  # a tenth of a second, which a device's start does not wait for

    found = {name: PlugIn(name, package) for name, package in ours}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        if point.name in found and found[point.name].package != point.value:
            raise HostError(
                f"the entry point {group}:{point.name} ({point.value}) takes the name of {found[point.name].package}",
                hint="Uninstall the package that it comes from, or have its author rename it.",
            )
        found[point.name] = PlugIn(point.name, point.value)
    return found


def look_up(what: str, name: str, group: str, ours: Mapping[str, str]) -> PlugIn:
    """Ours without a look at what else is installed. Raises UsageError naming what is known."""
    if name in ours:
        return PlugIn(name, ours[name])
    known = plug_ins(group, tuple(ours.items()))
    if name not in known:
        raise UsageError(f"no {what} named '{name}'.{nearest(name, known)}", hint=f"Installed: {', '.join(known)}.")
    return known[name]
