"""Looks up plug-ins by name. A plug-in is a package with agreed module names, built in or from an entry point.

Each module is imported only when it is used: a device that runs a bundle imports a kind's ``runtime`` and a backend's
``load``, and nothing that only an export needs.
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
    """A package and its name in a registry."""

    name: str
    package: str

    def part(self, module: str) -> ModuleType:
        """Import one of its modules. Raises UsageError if the package does not have it."""
        if not self.has(module):
            raise UsageError(
                f"the plug-in '{self.name}' has no module '{module}'",
                hint=f"Update the package that provides it, or add {self.package}.{module}.",
            )
        return importlib.import_module(f"{self.package}.{module}")

    def has(self, module: str) -> bool:
        return importlib.util.find_spec(f"{self.package}.{module}") is not None


@cache
def plug_ins(group: str, ours: tuple[tuple[str, str], ...]) -> Mapping[str, PlugIn]:
    """Name -> plug-in: the built-in ones in their order, then the entry points of ``group`` sorted by name.

    Raises HostError if an entry point uses a name that is already taken.
    """
    from importlib.metadata import entry_points  # takes 0.1 s; a device must not wait for it

    found = {name: PlugIn(name, package) for name, package in ours}
    for point in sorted(entry_points(group=group), key=lambda point: point.name):
        if point.name in found and found[point.name].package != point.value:
            raise HostError(
                f"the entry point {group}:{point.name} ({point.value}) has the name of {found[point.name].package}",
                hint="Uninstall the package that provides it, or ask its author to rename it.",
            )
        found[point.name] = PlugIn(point.name, point.value)
    return found


def look_up(what: str, name: str, group: str, ours: Mapping[str, str]) -> PlugIn:
    """Find a plug-in; a built-in one without scanning entry points. Raises UsageError with the installed names."""
    if name in ours:
        return PlugIn(name, ours[name])
    known = plug_ins(group, tuple(ours.items()))
    if name not in known:
        raise UsageError(f"no {what} named '{name}'.{nearest(name, known)}", hint=f"Installed: {', '.join(known)}.")
    return known[name]
