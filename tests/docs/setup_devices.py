"""Devices for a page: a real sshd and a real Dask scheduler with workers, all on this machine.

A page names them as its reader would: ``ssh://device``, ``tcp://scheduler:8786``. These names do not resolve here, so
the page's ``edgecompress`` is wrapped: its home holds ssh files for ``device``, and it replaces the scheduler's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.docs.setups import setup

ROOT = Path(__file__).parent.parent.parent
SOURCES = os.pathsep.join(str(ROOT / name) for name in ("", "kernels", "targets"))
SCHEDULER = "tcp://scheduler:8786"


def wrap(folder: Path, environment: dict[str, str], addresses: dict[str, str]) -> None:
    """Replace the page's ``edgecompress`` by one that adds to its environment and knows addresses by name."""
    tool = folder.parent / "home" / "bin" / "edgecompress"
    tool.parent.mkdir(parents=True, exist_ok=True)
    known = tool.with_suffix(".json")  # of another setup of the page
    before = json.loads(known.read_text()) if known.exists() else [{}, {}]
    environment, addresses = before[0] | environment, before[1] | addresses
    known.write_text(json.dumps([environment, addresses]))
    tool.write_text(
        f"#!{sys.executable}\nimport os, sys\nos.environ.update({environment!r})\n"
        f"words = [{addresses!r}.get(word, word) for word in sys.argv[1:]]\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'edgecompress', *words])\n"
    )
    tool.chmod(0o755)


@setup("ssh-device")
def ssh_device(folder: Path) -> contextlib.AbstractContextManager[None]:
    """An sshd that this user reaches as ``ssh://device``, with the packages of a runtime already installed."""
    return _ssh_device(folder)


@contextlib.contextmanager
def _ssh_device(folder: Path) -> Iterator[None]:
    from tests.devices.conftest import Loopback

    local = folder.parent / "local"
    device = Loopback(folder.parent / "device", local)
    device.environment["PATH"] = os.environ["PATH"]
    device.start()
    try:
        with _home(local):
            install_packages(device.cache)
        wrap(folder, {"HOME": str(local)}, {})
        yield
    finally:
        device.stop()


def install_packages(cache: Path) -> None:
    """Create the environment that ``prepare`` makes on a device with pip, from this machine's packages."""
    from edgecompress.devices.install import environment_name, find_python, plan_environment
    from edgecompress.devices.ssh import connect, parse_address
    from edgecompress.formats.packages import installed_version

    async def version() -> str:
        async with connect(parse_address("ssh://device")) as device:
            return (await find_python(device))[1]

    plan = plan_environment()
    env = cache / "envs" / environment_name(asyncio.run(version()), plan, None)
    (env / "bin").mkdir(parents=True)
    python = env / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (env / "ready.json").write_text(json.dumps({name: installed_version(name) for name in plan.packages}))


@contextlib.contextmanager
def _home(path: Path) -> Iterator[None]:
    before = os.environ.get("HOME")
    os.environ["HOME"] = str(path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["HOME"]
        else:
            os.environ["HOME"] = before


@setup("dask-fleet")
def dask_fleet(folder: Path, *labels: str) -> contextlib.AbstractContextManager[None]:
    """A scheduler at ``tcp://scheduler:8786``, and a worker for each label."""
    return _dask_fleet(folder, labels)


@contextlib.contextmanager
def _dask_fleet(folder: Path, labels: tuple[str, ...]) -> Iterator[None]:
    from benchmarks.local_fleet import LocalFleet
    from edgecompress.devices.fleet import connect_fleet, labels_of
    from tests.devices.conftest import wait_until

    place = folder.parent / "fleet"
    place.mkdir()
    with LocalFleet(place, {"PYTHONPATH": SOURCES}) as fleet:
        for number, label in enumerate(labels):
            fleet.add_worker(f"worker-{number}", label)
        with connect_fleet(fleet.address) as client:
            wait_until("all are there", lambda: sum(map(len, labels_of(client).values())) == len(labels), 120)
        wrap(folder, {}, {SCHEDULER: fleet.address})
        yield
