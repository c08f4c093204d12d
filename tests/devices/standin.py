"""What a test's fleet runs in place of a profile; imported by the workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from edgecompress.devices.worker import TOPIC, Order


def quick(order: Order) -> dict[str, Any]:
    """A profile that was measured before, after a moment."""
    from distributed import get_worker

    worker = get_worker()
    worker.log_event(TOPIC, {"job": order["job"], "worker": worker.address})
    time.sleep(0.05)
    profile = Path(os.environ["STANDIN"], "profile.json").read_text()
    return {"worker": worker.address, "exit": 0, "stdout": profile, "stderr": ""}


def stalling(order: Order) -> dict[str, Any]:
    """The first one that is begun says where, and does not end; the others, and itself begun anew, are quick."""
    from distributed import get_worker

    try:
        with Path(os.environ["STANDIN"], "stalled").open("x") as file:
            file.write(str(get_worker().name))
    except FileExistsError:
        return quick(order)
    quick(order)
    time.sleep(600)
    return {}


def deadly(_: Order) -> dict[str, Any]:
    """Its worker is lost, each time."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def raising(_: Order) -> dict[str, Any]:
    raise RuntimeError("a defect")
