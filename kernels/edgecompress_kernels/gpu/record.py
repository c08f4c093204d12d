"""The JSON record beside a cubin: everything that a launch without Triton needs, and the cubin's hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgecompress_kernels.gpu.variants import Variant

SCHEMA = 2


class RecordError(ValueError):
    """A kernel's files cannot be used; the message names the file and the reason."""


@dataclass(frozen=True, kw_only=True)
class KernelRecord:
    """One compiled kernel. ``signature``: parameters in call order, with Triton's types."""

    name: str
    kernel: str  # prefill, prefill_hopper, decode or add_norm
    symbol: str  # in the cubin
    capability: str
    exact_capability: bool  # for that capability only, not for later minor versions
    signature: dict[str, str]
    aligned: list[str]  # parameters that must be multiples of 16
    ranges: dict[str, list[float]]  # [min, max] of a value; other values need another kernel
    constants: dict[str, int | bool]
    grid: list[
        list[dict[str, Any]]
    ]  # per axis its factors: the product of the sizes named in "of" divided by "per", rounded up
    sizes: list[str]  # sizes for the grid that are not parameters
    maps: dict[str, dict[str, Any]]  # parameter that is a map -> box, swizzle (CUtensorMapSwizzle), element_bytes
    num_warps: int
    num_stages: int
    shared_bytes: int
    registers: int
    stack_bytes: int
    scratch_pointers: int  # hidden u64 parameters after the signature's; always 0, since no scratch is used
    triton_version: str
    sha256: str  # of the cubin
    verified: str  # how it was tested
    schema: int = SCHEMA

    @property
    def threads(self) -> int:
        return 32 * self.num_warps


def record_of(variant: Variant, **compiled: Any) -> KernelRecord:
    """Combine a variant's own fields with those from its compilation."""
    return KernelRecord(
        name=variant.name,
        kernel=variant.kernel.name,
        capability=variant.chip.name,
        exact_capability=variant.chip.exact,
        signature=variant.signature,
        aligned=list(variant.aligned),
        ranges={name: list(ends) for name, ends in variant.ranges.items()},
        constants=variant.constants,
        grid=variant.grid,
        sizes=list(variant.kernel.sizes),
        num_stages=variant.num_stages,
        **compiled,
    )


def write_kernel(record: KernelRecord, cubin: bytes, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{record.name}.cubin").write_bytes(cubin)
    text = json.dumps(asdict(record), indent=1)
    (folder / f"{record.name}.json").write_text(text + "\n", encoding="utf-8")


def read_kernel(path: Path) -> tuple[KernelRecord, bytes]:
    """Read the record at ``path`` (.json) and its cubin.

    Raises RecordError if either is missing, of another schema, or does not belong to the other.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        cubin = path.with_suffix(".cubin").read_bytes()
    except FileNotFoundError as error:
        raise RecordError(
            f"{error.filename} does not exist: compile it with python -m edgecompress_kernels.gpu.aot"
        ) from None
    except json.JSONDecodeError as error:
        raise RecordError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise RecordError(f"{path} does not have schema {SCHEMA}: compile it again with this version")
    names = {field.name for field in fields(KernelRecord)}
    if set(values) != names:
        odd = ", ".join(sorted(set(values) ^ names))
        raise RecordError(f"{path} has missing or unknown fields: {odd}")
    record = KernelRecord(**values)
    if hashlib.sha256(cubin).hexdigest() != record.sha256:
        raise RecordError(f"{path.with_suffix('.cubin')} does not belong to {path.name}: its sha256 differs")
    return record, cubin
