"""A runtime on a device: the device's Python, an environment of pinned packages, and this edgecompress beside it.

Environment and code are named after a hash of their content: each is created once and never changed.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

from edgecompress.devices.agent import MARK, NO_NETWORK
from edgecompress.devices.push import Parcel, Show, parcel, push, refusal
from edgecompress.devices.ssh import Device
from edgecompress.devices.wheel import NAME, base_requirements, build_wheel
from edgecompress.errors import DeviceError, UsageError
from edgecompress.formats.packages import gpu_build, installed_version, requirements
from edgecompress.version import __version__

_PYTHONS = ("python3", "python3.14", "python3.13", "python3.12", "python3.11")
_OLDEST = (3, 11)
_PROFILE_EXTRA = "profile"  # beside the base install: to time the graph's nodes
_LOOK = (
    "import sys,json,platform,importlib.util as u;"
    f"print('{MARK}'+json.dumps([sys.executable,sys.version_info[:3],platform.machine(),"
    "[m for m in ('venv','ensurepip') if u.find_spec(m) is None]]))"
)


@dataclass(frozen=True, kw_only=True)
class Runtime:
    python: str  # path on the device
    code: str | None = None  # folder of edgecompress on the device; None: the user's own environment has it
    remarks: tuple[str, ...] = ()  # where its packages differ from this machine's


@dataclass(frozen=True, kw_only=True)
class EnvironmentPlan:
    """The packages of the environment on a device."""

    packages: tuple[str, ...]
    pins: tuple[str | None, ...]  # versions on this machine
    attempts: tuple[tuple[str, ...], ...]  # this machine's versions, else lower ones, else any in range
    constraints: tuple[str, ...]


async def find_python(device: Device) -> tuple[str, str]:
    """Path and version of the first Python there that is new enough and has venv. Raises DeviceError."""
    script = f'for p in {" ".join(_PYTHONS)}; do command -v $p >/dev/null 2>&1 && $p -c "{_LOOK}"; done; true'
    _, out, err = await device.ask(script)
    found = [json.loads(line.partition(MARK)[2]) for line in out.splitlines() if MARK in line]
    where = device.address
    if not found:
        said = next((line for line in reversed(err.splitlines()) if line.strip()), "")
        raise DeviceError(
            f"{where} has no python3" + (f": {said}" if said else ""),
            hint="Install Python 3.11 or later there, with its venv module, or give --device-python PATH.",
        )
    new = [each for each in found if tuple(each[1]) >= _OLDEST]
    if not new:
        raise DeviceError(
            f"{where} has Python {_version_of(found[0])}, and edgecompress needs 3.11 or later",
            hint="Install a later one beside it: edgecompress looks for python3.11, python3.12 and so on.",
        )
    whole = [each for each in new if not each[3]]
    if not whole:
        path, (major, minor, _), _, lacks = new[0]
        raise DeviceError(
            f"{path} on {where} cannot create environments: its module {lacks[0]} is missing",
            hint=f"On Debian and Ubuntu: sudo apt install python{major}.{minor}-venv",
        )
    return whole[0][0], _version_of(whole[0])


def _version_of(found: Any) -> str:
    return ".".join(map(str, found[1]))


async def check_python(device: Device, path: str) -> Runtime:
    """Use an interpreter on the device that has edgecompress installed. Raises DeviceError."""
    device.python = path
    code = f"import edgecompress;print('{MARK}'+edgecompress.__version__)"
    _, out, err = await device.ask(shlex.join([path, "-c", code]))
    _, mark, version = out.partition(MARK)
    if not mark:
        said = next((line for line in reversed(err.splitlines()) if line.strip()), "no error message")
        raise DeviceError(
            f"{path} on {device.address} has no edgecompress: {said}",
            hint=f"Install edgecompress {__version__} there, or leave out --device-python.",
        )
    if version.strip() != __version__:
        raise DeviceError(
            f"{path} on {device.address} has edgecompress {version.strip()}, this machine {__version__}",
            hint=f"Install edgecompress {__version__} there, or leave out --device-python.",
        )
    return Runtime(python=path)


def plan_environment() -> EnvironmentPlan:
    """What `profile` needs on a device, pinned to this machine's versions. Raises HostError if not installed here."""
    needed = base_requirements()
    needed += [each for each in requirements() if each.extra == _PROFILE_EXTRA]
    ranges = {each.name: each.specifier for each in needed}
    names, specs = list(ranges), list(ranges.values())
    pins = [_pin(name) for name in names]
    exact = [f"{n}=={pin}" if pin else f"{n}{spec}" for n, pin, spec in zip(names, pins, specs, strict=True)]
    at_most = [
        f"{n}{spec}{',' if spec else ''}<={pin}" if pin else f"{n}{spec}"
        for n, pin, spec in zip(names, pins, specs, strict=True)
    ]
    any_version = [f"{n}{spec}" for n, spec in zip(names, specs, strict=True)]
    return EnvironmentPlan(
        packages=tuple(names),
        pins=tuple(pins),
        attempts=(tuple(exact), tuple(at_most), tuple(any_version)),
        constraints=tuple(f"{name}=={pin}" for name in _with_dependencies(names) if (pin := _pin(name))),
    )


def _with_dependencies(names: list[str]) -> list[str]:
    """These packages and all their dependencies, also those for other systems."""
    found, pending = set(names), list(names)
    while pending:
        try:
            needed = requirements(pending.pop())
        except PackageNotFoundError:
            continue
        for name in (each.name for each in needed if each.extra is None):
            if name not in found:
                found.add(name)
                pending.append(name)
    return sorted(found)


def _pin(name: str) -> str | None:
    """The version on this machine, of the package or its GPU build, without its local label."""
    version = installed_version(name) or installed_version(gpu_build(name))
    return version.partition("+")[0] if version is not None else None


def wheel_parcels(folder: Path) -> list[Parcel]:
    """The wheels of a folder. Raises UsageError if there are none."""
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise UsageError(
            f"{folder} holds no wheels",
            hint="Fill it with pip download --only-binary :all: --platform …, for the device's processor and Python: "
            f"{' '.join(plan_environment().packages)}.",
        )
    made = [parcel(path, path.name) for path in wheels]
    name = hashlib.sha256("".join(each.sha256 for each in made).encode()).hexdigest()[:16]
    return [
        Parcel(source=each.source, path=f"wheels/{name}/{each.path}", sha256=each.sha256, size=each.size)
        for each in made
    ]


async def prepare(device: Device, wheels: list[Parcel], show: Show) -> Runtime:
    """Create the environment on the device unless it exists. Raises DeviceError."""
    device.python, version = await find_python(device)
    content, plan = build_wheel(), plan_environment()
    own = parcel(content, "")
    own = parcel(content, f"wheels/{own.sha256[:16]}/{NAME}")
    folder = wheels[0].path.rpartition("/")[0] if wheels else None
    await push(device, [own, *wheels], show)
    async with device.talk("install") as talk:
        await talk.order(
            {
                "env": environment_name(version, plan, folder),
                "packages": plan.packages,
                "attempts": plan.attempts,
                "constraints": plan.constraints,
                "wheel": own.path,
                "wheels": folder,
            }
        )
        while True:
            answer = await talk.answer()
            if "python" in answer:
                return Runtime(
                    python=answer["python"], code=answer["code"], remarks=_version_remarks(plan, answer["versions"])
                )
            if "error" in answer:
                raise _failure(answer, device)
            show(f"{device.address}: {answer.get('show', '')}")


def environment_name(python_version: str, plan: EnvironmentPlan, wheels: str | None) -> str:
    """Of the folder on the device: a hash of what is installed there, and from where (``wheels``: a folder there)."""
    key = json.dumps([python_version, plan.attempts, plan.constraints, wheels])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _version_remarks(plan: EnvironmentPlan, versions: dict[str, str]) -> tuple[str, ...]:
    return tuple(
        f"{name} {versions[name]} on the device: this machine's {pin} is not available there"
        for name, pin in zip(plan.packages, plan.pins, strict=True)
        if pin is not None and versions[name] != pin
    )


def _failure(answer: dict[str, Any], device: Device) -> DeviceError:
    where, text = device.address, str(answer.get("last", answer.get("text", "")))
    if "No space left" in text:
        return refusal({"error": "full", "text": "pip cannot unpack the runtime"}, str(where))
    errors = [line.removeprefix("ERROR: ") for line in text.splitlines() if line.startswith("ERROR: ")]
    said = next((line for line in errors if "ResolutionImpossible" not in line), text.strip()[-300:])[:300]
    if answer["error"] == "venv":
        return DeviceError(
            f"{device.python} on {where} cannot create an environment: {said}",
            hint="On Debian and Ubuntu: sudo apt install python3-venv",
        )
    if answer["error"] != "pip":
        return refusal(answer, str(where))
    if any(sign in text for sign in NO_NETWORK):
        return DeviceError(
            f"pip on {where} cannot reach a package index",
            hint="Send wheels from this machine: --wheels DIR, filled by pip download for that device.",
        )
    return DeviceError(
        f"the runtime cannot be installed on {where}: {said}",
        hint="Only wheels are installed. Check that each package has one for that processor and Python.",
    )
