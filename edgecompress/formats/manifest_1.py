"""Upgrades manifests of schema 1 to schema 2."""

from __future__ import annotations

from typing import Any

from edgecompress.types.bundle import MODEL
from edgecompress.types.bundle_1 import BACKENDS, KINDS, SETTINGS

_OF_VARIANT = ("inputs", "outputs", "runtime", "kernels", "engine", "build")
_KEPT = ("tool_version", "name", "task", "architecture", "precision", "files", "versions")


def upgrade(data: dict[str, Any]) -> dict[str, Any]:
    """Convert a schema 1 document to schema 2. Raises ValueError, KeyError or TypeError if it is not valid."""
    kind = next((kind for key, kind in KINDS if data.get(key) is not None), None)
    if kind is None:
        raise ValueError("it has settings for neither text nor images")
    known = {
        "schema_version",
        "model",
        "target",
        *_OF_VARIANT,
        *_KEPT,
        *(key for keys in SETTINGS.values() for key in keys),
    }
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"unknown key '{unknown[0]}'")
    target = dict(data["target"])
    providers, backend = target.pop("providers"), target.pop("backend")
    variant = {key: data[key] for key in _OF_VARIANT if key in data}
    variant |= {
        "backend": BACKENDS.get((backend, next(iter(providers), "")), backend),
        "path": data["model"],
        "providers": providers,
    }
    sidecar = f"{data['model']}.data"
    if sidecar in data.get("files", {}):
        variant["data"] = sidecar
    return {
        **{key: data[key] for key in _KEPT if key in data},
        "kind": kind,
        "target": target,
        "models": {MODEL: {"variants": [variant]}},
        "settings": {key: data[key] for key in SETTINGS[kind] if data.get(key) is not None},
        "schema_version": 2,
    }
