"""An engine, or the plan of one, in a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from edgecompress.types.bundle import BuildPlan, EngineRecord, ShapeRange


def describe_engine(engine: EngineRecord) -> str:
    """What an engine needs, and what it takes."""
    capability = ".".join(map(str, engine.compute_capability))
    place = f"built on {engine.os}" + (f" for {engine.gpu}" if engine.gpu else "")
    takes = _shapes(engine.profile)
    if engine.weights_bytes:
        takes += f"; weights {engine.weights_bytes / 1e6:.1f} MB"
    return f"compute capability {capability}, {engine.builder} {engine.version}, {place}; {takes}"


def describe_build(build: BuildPlan, bundle: Path | str = "BUNDLE") -> str:
    """What is still to be done on the device, and what the choices for it cost."""
    capability = ".".join(map(str, build.compute_capability))
    wanted = f"{build.builder} {build.minimum_version} or later, compute capability {capability}"
    lines = [f"not built yet: `edgecompress build {bundle}` on the device ({wanted}); {_shapes(build.profile)}"]
    return "\n            ".join([*lines, *build.prices])


def _shapes(profile: Mapping[str, ShapeRange]) -> str:
    shapes: dict[str, str] = {}  # of several inputs of one shape the first is named
    for name, shape in profile.items():
        if not name.startswith("past_key_values."):
            shapes.setdefault("×".join(map(str, shape.smallest)) + " to " + "×".join(map(str, shape.largest)), name)
    return ", ".join(f"{name} {shape}" for shape, name in shapes.items())
