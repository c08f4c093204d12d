"""One line about an engine, or about its build plan."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgecompress.types.bundle import BuildPlan, EngineRecord, ShapeRange


def describe_engine(engine: EngineRecord) -> str:
    """The GPU and library that an engine needs, and its shapes."""
    capability = ".".join(map(str, engine.compute_capability))
    place = f"built on {engine.os}" + (f" for {engine.gpu}" if engine.gpu else "")
    takes = _shapes(engine.profile)
    if engine.weights_bytes:
        takes += f"; weights {engine.weights_bytes / 1e6:.1f} MB"
    return f"compute capability {capability}, {engine.builder} {engine.version}, {place}; {takes}"


def describe_build(build: BuildPlan, bundle: Path | str = "BUNDLE") -> str:
    """The command to run on the device, and what the chosen settings cost."""
    capability = ".".join(map(str, build.compute_capability))
    wanted = f"{build.builder} {build.minimum_version} or later, compute capability {capability}"
    lines = [f"not built yet: `edgecompress build {bundle}` on the device ({wanted}); {_shapes(build.profile)}"]
    return "\n            ".join([*lines, *build.prices])


def _shapes(profile: Mapping[str, ShapeRange]) -> str:
    shapes: dict[str, str] = {}  # names the first of several inputs with one shape
    for name, shape in profile.items():
        if not name.startswith("past_key_values."):
            shapes.setdefault("×".join(map(str, shape.smallest)) + " to " + "×".join(map(str, shape.largest)), name)
    return ", ".join(f"{name} {shape}" for shape, name in shapes.items())
