"""Reads a cubin's registers, stack and parameters from its ELF sections, without CUDA tools.

The attribute numbers are those of ptxas in CUDA 12 and 13, checked against the output of ``ptxas -v``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

_MACHINE_CUDA = 190
_SVAL = 4  # an attribute with a sized payload; other formats have their value in place of the size
_REGISTERS, _FRAME, _PARAMETER_BYTES = 0x2F, 0x11, 0x19


class CubinError(ValueError):
    """Bytes are not a cubin with one kernel; the message gives the reason."""


@dataclass(frozen=True, kw_only=True)
class CubinFacts:
    """Figures of one kernel."""

    kernel: str
    registers: int  # per thread
    stack_bytes: int  # per thread; Triton uses the stack only for spilled registers
    parameter_bytes: int


def _sections(cubin: bytes) -> dict[str, bytes]:
    if cubin[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", cubin, 18)[0] != _MACHINE_CUDA:
        raise CubinError("this is not a cubin: it does not start with a CUDA ELF header")
    (table,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    found = {}
    for name, kind, _, _, offset, length in headers:
        start = headers[names][4] + name
        text = cubin[start : cubin.index(b"\0", start)].decode()
        found[text] = b"" if kind == 8 else cubin[offset : offset + length]
    return found


def _attributes(section: bytes) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    at = 0
    while at + 4 <= len(section):
        form, attribute, size = struct.unpack_from("<BBH", section, at)
        value = section[at + 2 : at + 4]
        at += 4
        if form == _SVAL:
            value = section[at : at + size]
            at += size
        found.setdefault(attribute, []).append(value)
    return found


def cubin_facts(cubin: bytes) -> CubinFacts:
    """Return the figures of a cubin's only kernel.

    Raises CubinError if it is not a cubin, or does not contain exactly one kernel.
    """
    try:
        sections = _sections(cubin)
        kernels = [name.removeprefix(".text.") for name in sections if name.startswith(".text.")]
        if len(kernels) != 1:
            raise CubinError(f"the cubin has {len(kernels)} kernels instead of one")
        whole = _attributes(sections[".nv.info"])
        own = _attributes(sections[f".nv.info.{kernels[0]}"])
        registers, stack = (struct.unpack("<II", whole[key][0])[1] for key in (_REGISTERS, _FRAME))
        (parameters,) = struct.unpack("<H", own[_PARAMETER_BYTES][0])
    except (struct.error, KeyError, IndexError, ValueError) as error:
        if isinstance(error, CubinError):
            raise
        raise CubinError(f"this cubin cannot be read: {type(error).__name__} {error}") from error
    return CubinFacts(kernel=kernels[0], registers=registers, stack_bytes=stack, parameter_bytes=parameters)
