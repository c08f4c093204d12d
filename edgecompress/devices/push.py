"""Send files to a device: bundles, traces, wheels. Only missing parts are sent."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgecompress.devices import depot
from edgecompress.devices.ssh import Device
from edgecompress.errors import BundleError, DeviceError
from edgecompress.formats.manifest import MANIFEST, file_sha256
from edgecompress.types.bundle import Manifest

Show = Callable[[str], None]
_CHUNK_BYTES = 1 << 18
_OUTSIDE = (MANIFEST, f"{MANIFEST}.sha256", "measurements.json", "measurements.json.sha256")


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """One file: its path here or its content, and its path on the device."""

    source: Path | bytes
    path: str
    sha256: str
    size: int

    @property
    def file(self) -> depot.File:
        return depot.File(path=self.path, sha256=self.sha256, bytes=self.size)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def chunks(self, offset: int, most: int = _CHUNK_BYTES) -> Iterable[bytes]:
        """Its bytes from ``offset`` on. Raises BundleError if the file shrank meanwhile."""
        if isinstance(self.source, bytes):
            for at in range(offset, len(self.source), most):
                yield self.source[at : at + most]
            return
        left = self.size - offset
        with self.source.open("rb") as content:
            content.seek(offset)
            while left:
                data = content.read(min(most, left))
                if not data:
                    raise BundleError(f"'{self.name}' became shorter while it was sent", hint="Run the command again.")
                left -= len(data)
                yield data


def parcel(source: Path | bytes, path: str) -> Parcel:
    if isinstance(source, bytes):
        return Parcel(source=source, path=path, sha256=hashlib.sha256(source).hexdigest(), size=len(source))
    return Parcel(source=source, path=path, sha256=file_sha256(source), size=source.stat().st_size)


def bundle_folder(identity: str) -> str:
    """A bundle's folder on a device, below :func:`edgecompress.devices.depot.root`."""
    return f"bundles/{identity}"


def bundle_parcels(manifest: Manifest, folder: Path) -> list[Parcel]:
    """Every file of a verified bundle; its folder on the device is named after the sha256 of its manifest."""
    into = bundle_folder(file_sha256(folder / MANIFEST))
    listed = [
        Parcel(source=folder / name, path=f"{into}/{name}", sha256=record.sha256, size=record.bytes)
        for name, record in manifest.files.items()
    ]
    others = [parcel(folder / name, f"{into}/{name}") for name in _OUTSIDE if (folder / name).is_file()]
    return [*listed, *others]


async def push(device: Device, parcels: list[Parcel], show: Show) -> int:
    """Send what is missing on the device; return the number of bytes sent. Raises DeviceError."""
    sent = 0
    async with device.talk("receive") as talk:
        await talk.order({"files": [each.file for each in parcels]})
        while True:
            answer = await talk.answer()
            if "whole" in answer:
                return sent
            if "error" in answer:
                raise refusal(answer, str(device.address))
            need: list[depot.MissingPart] = answer["need"]
            whole = depot.needed_bytes([each.file for each in parcels], need)
            done = 0
            for each in need:
                sending = parcels[each["index"]]
                for data in sending.chunks(each["offset"]):
                    show(f"sending {sending.name}: {done / 1e6:.1f} of {whole / 1e6:.1f} MB")
                    if not await talk.send(data):
                        break
                    done += len(data)
                else:
                    continue
                break  # the command ended: its last answer says why
            sent += done


def refusal(answer: dict[str, object], where: str) -> DeviceError:
    """The failure that an agent or a worker reports, as a DeviceError."""
    kind, text = answer["error"], str(answer.get("text", ""))
    room = "Free some space there; ~/.cache/edgecompress/device can be removed. Files that arrived are kept."
    if kind == "full" and "needed_bytes" in answer:
        needed, free = (int(str(answer[name])) / 1e6 for name in ("needed_bytes", "free_bytes"))
        return DeviceError(f"{where} has {free:.1f} MB free and needs {needed:.1f} MB", hint=room)
    if kind == "full":
        return DeviceError(f"the disk of {where} is full: {text}", hint=room)
    if kind == "altered":
        return DeviceError(
            f"'{answer['path']}' arrived corrupted on {where}, twice",
            hint="Its disk or memory may be failing: check its kernel log.",
        )
    return DeviceError(f"{where} reports an error: {text}", hint="Check that its home folder is writable.")
