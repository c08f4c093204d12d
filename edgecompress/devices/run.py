"""A profile on a device over SSH: send the runtime and the bundle, run ``edgecompress profile``, fetch its JSON.

A run whose connection broke goes on there, and the next call with the same settings fetches its result. Until then
this machine keeps the run's name in a file, so that no other call takes the result.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import json
import secrets
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from edgecompress import errors
from edgecompress.devices import depot
from edgecompress.devices.install import Runtime, check_python, prepare, wheel_parcels
from edgecompress.devices.push import Parcel, Show, bundle_folder, bundle_parcels, parcel, push, refusal
from edgecompress.devices.ssh import Address, ConnectionLostError, Device, connect
from edgecompress.errors import DeviceError, EdgeCompressError
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.manifest import MANIFEST, file_sha256, open_bundle
from edgecompress.profile.run import Asked, check
from edgecompress.profile.workload import workloads_of
from edgecompress.types.bundle import Manifest
from edgecompress.types.profile import Profile

_TRACE = "trace:"
_UP = "../../"  # from a job's folder to depot.root()


def profile_over_ssh(
    bundle: Path, asked: Asked, address: Address, *, wheels: Path | None = None, python: str | None = None, show: Show
) -> Profile:
    """Profile ``bundle`` on the device.

    ``wheels``: a folder of wheels, for a device without a package index. ``python``: an interpreter on the device that
    has edgecompress. Raises DeviceError, and the error of the profile there, with its exit code.
    """
    check(asked)
    manifest, folder = open_bundle(bundle)
    shapes, traces = send_traces(asked.shapes, manifest)
    parcels = [*bundle_parcels(manifest, folder), *traces]
    lent = wheel_parcels(wheels) if wheels is not None else []
    identity = file_sha256(folder / MANIFEST)
    flags = flags_of(replace(asked, shapes=shapes))

    async def on_device() -> Profile:
        show(f"connecting to {address}")
        async with connect(address) as device:
            runtime = await (check_python(device, python) if python is not None else prepare(device, lent, show))
            await push(device, parcels, show)
            command = [runtime.python, "-m", "edgecompress", *profile_command(identity, flags)]
            with _pending(str(address), [runtime.code or "", *command]) as job:
                return await _attend(device, runtime, command, job, show)

    found = asyncio.run(on_device())
    return replace(found, bundle=bundle.name)


def profile_command(identity: str, flags: list[str]) -> list[str]:
    """Arguments for a run in a folder two levels below :func:`edgecompress.devices.depot.root`."""
    return ["profile", _UP + bundle_folder(identity), "--json", *flags]


def send_traces(shapes: str | None, manifest: Manifest) -> tuple[str | None, list[Parcel]]:
    """The shapes with their traces' paths on a device, and the trace files. Raises UsageError."""
    if shapes is None:
        return None, []
    workloads_of(manifest, shapes)
    parts, parcels = [], []
    for part in (each.strip() for each in shapes.split(",")):
        if part.startswith(_TRACE):
            source = Path(part.removeprefix(_TRACE))
            there = f"traces/{file_sha256(source)}/{source.name}"
            parcels.append(parcel(source, there))
            part = f"{_TRACE}{_UP}{there}"
        parts.append(part)
    return ",".join(parts), parcels


def flags_of(asked: Asked) -> list[str]:
    """The settings as command-line flags."""
    flags: list[str] = []
    for name, value in {
        "--shapes": asked.shapes,
        "--threads": ",".join(map(str, asked.threads)) or None,
        "--duration": asked.duration_s,
        "--percentile": asked.percentile,
        "--scenario": ",".join(asked.scenarios),
        "--per-second": asked.per_s,
        "--bound-ms": asked.bound_ms,
        "--new-tokens": asked.new_tokens,
        "--device": asked.device,
    }.items():
        if value is not None:
            flags.append(f"{name}={value}")
    flags += ["--no-cold-start"] * (not asked.cold) + ["--no-operators"] * (not asked.operators)
    return flags + ["--allow-mismatch"] * asked.allow_mismatch


async def _attend(device: Device, runtime: Runtime, command: list[str], job: str, show: Show) -> Profile:
    device.when_lost = "The profile goes on there: run the same command again to fetch the result."
    async with device.talk("attend") as talk:
        own = runtime.code is not None
        environment = {"PYTHONPATH": runtime.code, "PYTHONNOUSERSITE": "1"} if own else {}
        without = ["PYTHONHOME"] if own else []
        await talk.order({"job": job, "command": command, "environment": environment, "without": without})
        remarks = list(runtime.remarks)
        while True:
            answer = await talk.answer()
            if answer.get("found"):
                remarks.append("the connection broke during this run; the device finished it")
            elif "show" in answer:
                show(f"{device.address}: {answer['show']}")
            elif "exit" in answer:
                await talk.say("read", until="forgotten")
                found = read_outcome(answer["exit"], answer["stdout"], answer["stderr"], str(device.address))
                return replace(found, remarks=(*found.remarks, *remarks))
            elif answer.get("error") == "died":
                raise DeviceError(
                    f"the profile on {device.address} was killed: {_last(answer['stderr'])}",
                    hint="The device may have restarted or run out of memory. Run the command again.",
                )
            elif "error" in answer:
                raise refusal(answer, str(device.address))


def read_outcome(code: int, stdout: str, stderr: str, where: str) -> Profile:
    """The profile that ``edgecompress profile --json`` printed. Raises the error that it printed, else DeviceError."""
    try:
        data = json.loads(stdout)
    except ValueError:
        data = None
    if isinstance(data, dict) and isinstance(data.get("error"), dict):
        raise error_of(data["error"], where)
    if code == 0:
        try:
            return from_jsonable(Profile, data)
        except ValueError as error:
            raise DeviceError(
                f"{where} returned something other than a profile: {error}",
                hint="Install the same version of edgecompress there.",
            ) from None
    if code >= 0:
        raise DeviceError(
            f"the profile on {where} ended with exit code {code}: {_last(stderr)}",
            hint="Install the same version of edgecompress there.",
        )
    raise DeviceError(
        f"the profile on {where} was killed by {_signal_name(-code)}: {_last(stderr)}",
        hint="SIGKILL mostly means out of memory: give shorter shapes or a smaller bundle.",
    )


def error_of(error: dict[str, Any], where: str) -> EdgeCompressError:
    """The exception that was printed as JSON."""
    cls = getattr(errors, str(error.get("type")), EdgeCompressError)
    if (
        not (isinstance(cls, type) and issubclass(cls, EdgeCompressError))
        or cls.__init__ is not EdgeCompressError.__init__
    ):
        cls = EdgeCompressError
    found = cls(f"{where}: {error.get('message')}", hint=str(error.get("hint", "")))
    if isinstance(code := error.get("exit_code"), int):
        found.exit_code = code
    return found


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last(stderr: str) -> str:
    return next((line.strip()[:300] for line in reversed(stderr.splitlines()) if line.strip()), "no error message")


@contextlib.contextmanager
def _pending(address: str, command: list[str]) -> Iterator[str]:
    """The job's name: that of an equal call that lost its connection, else a new one, kept if this call loses it."""
    folder = depot.root().parent / "pending"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(json.dumps([address, command]).encode()).hexdigest()[:24]
    with _first_free(folder, key) as file:
        file.seek(0)
        nonce = file.read()
        if not nonce:
            nonce = secrets.token_hex(8)
            file.write(nonce)
            file.flush()
        try:
            yield f"{key}-{nonce}"
        except ConnectionLostError:
            raise
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
        Path(file.name).unlink(missing_ok=True)


def _first_free(folder: Path, key: str) -> IO[str]:
    """A file that no other call has locked: equal calls at the same time get one each."""
    for number in itertools.count():
        file = (folder / f"{key}.{number}").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            file.close()
    raise AssertionError
