"""A wheel of this edgecompress, from the package's own files: the device runs the same code."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import io
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from edgecompress.errors import HostError
from edgecompress.formats.packages import Requirement, requirements
from edgecompress.version import __version__

NAME = f"edgecompress-{__version__}-py3-none-any.whl"
_PACKAGES = ("edgecompress", "edgecompress_kernels", "edgecompress_targets")
_INFO = f"edgecompress-{__version__}.dist-info"
_TIME = (1980, 1, 1, 0, 0, 0)  # so that the same files give the same bytes


def base_requirements() -> list[Requirement]:
    """Requirements of the base install, from the package's metadata. Raises HostError without metadata."""
    try:
        return [each for each in requirements() if each.extra is None]
    except PackageNotFoundError:
        raise HostError(
            "edgecompress runs from source without metadata, so the packages for the device are unknown",
            hint="Install it: pip install -e . in its source folder.",
        ) from None


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
    metadata += [f"Requires-Dist: {each.name}{each.specifier}" for each in base_requirements()]
    files[f"{_INFO}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    files[f"{_INFO}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: edgecompress\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{_INFO}/RECORD"] = ("\n".join([*record, f"{_INFO}/RECORD,,"]) + "\n").encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _TIME)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
