"""This edgecompress as a wheel, made of the installed package's own files: what runs there is what runs here."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import zipfile
from pathlib import Path

from edgecompress import __version__

NAME = f"edgecompress-{__version__}-py3-none-any.whl"
_PACKAGES = ("edgecompress", "edgecompress_kernels", "edgecompress_targets")
_INFO = f"edgecompress-{__version__}.dist-info"
_TIME = (1980, 1, 1, 0, 0, 0)  # the same files give the same bytes


def requirements() -> list[str]:
    """Of the base install, as the installed package's metadata has them."""
    found = importlib.metadata.requires("edgecompress") or []
    return [text for text in found if "extra ==" not in text]


def build_wheel() -> bytes:
    files = {}
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
                files[f"{package}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()
    metadata = ["Metadata-Version: 2.1", "Name: edgecompress", f"Version: {__version__}", "Requires-Python: >=3.11"]
    metadata += [f"Requires-Dist: {text}" for text in requirements()]
    files[f"{_INFO}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    files[f"{_INFO}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: edgecompress\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{_INFO}/RECORD"] = ("\n".join([*record, f"{_INFO}/RECORD,,"]) + "\n").encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return made.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
