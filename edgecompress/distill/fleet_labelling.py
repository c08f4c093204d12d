"""Labelling on the workers of a Dask scheduler: each share of the prompts has its own store, merged when it is done.

When a worker is lost, the scheduler assigns its share to another. A worker keeps a share's store until it is merged,
so it requests nothing twice. Responses that are lost with a worker are requested again, so shares are small. The API
key is never sent: each worker reads it from its own environment.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

from edgecompress.devices import depot
from edgecompress.devices.fleet import connect_fleet, connection_lost, known_workers, wait_for_any
from edgecompress.devices.run import error_of
from edgecompress.devices.ssh import require_package
from edgecompress.devices.worker import is_awaited
from edgecompress.distill.budget import Budget, Limits, Tokens
from edgecompress.distill.endpoint import Endpoint, KeySource, parse_endpoint, read_secret
from edgecompress.distill.labelling import (
    LabellingResult,
    RetryPolicy,
    Run,
    Show,
    Tally,
    interruption,
    run_to_end,
    summary,
)
from edgecompress.distill.prompts import Message, Prompt, Sampling, read_prompts
from edgecompress.distill.responses import ResponseStore, open_store
from edgecompress.errors import DeviceError, EdgeCompressError, UsageError
from edgecompress.version import __version__

SHARE = 32  # prompts
_GONE_S = 30.0  # without any worker before the run fails


class Order(TypedDict):
    """The task for a worker: plain values, without the API key."""

    share: str
    version: str
    url: str
    model: str
    sampling: dict[str, Any]
    limits: dict[str, Any]
    patience: dict[str, Any]
    prompts: list[tuple[int, str, list[Message]]]  # place, key, messages
    concurrency: int
    key: dict[str, Any]  # where the worker reads it from


@dataclass(frozen=True)
class Share:
    id: str
    prompts: tuple[Prompt, ...]


def label_on_fleet(
    prompts: Path,
    teacher: str,
    store: Path,
    address: str,
    *,
    concurrency: int = 8,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    patience: RetryPolicy | None = None,
    key: KeySource | None = None,
    share: int = SHARE,
    show: Show = lambda _: None,
) -> LabellingResult:
    """Like :func:`edgecompress.distill.labelling.label`; ``concurrency`` is per worker.

    Also raises DeviceError: no scheduler, no worker, or a share that loses every worker.
    """
    sampling, limits, patience = sampling or Sampling(), limits or Limits(), patience or RetryPolicy()
    endpoint = parse_endpoint(teacher)
    if key is None or key.file is None:  # else the file is on the workers
        read_secret(endpoint, key)  # raises if the address holds a key
    asked, repeated = read_prompts(prompts, endpoint, sampling)
    began, tally = time.monotonic(), Tally()
    with open_store(store, endpoint, sampling) as kept, connect_fleet(address) as client:
        tally.found = sum(kept.has(prompt.key) for prompt in asked)
        order = Order(
            share="",
            version=__version__,
            url=endpoint.url,
            model=endpoint.model,
            sampling=asdict(sampling),
            limits=asdict(limits),
            patience=asdict(patience),
            prompts=[],
            concurrency=concurrency,
            key=asdict(key or KeySource()),
        )
        try:
            _Shares(client, kept, order, Budget(limits, kept.spent()), tally, show).run(asked, share)
        except KeyboardInterrupt:
            raise interruption(tally, store) from None
        return summary(endpoint, store, kept, tally, limits, len(asked), repeated, time.monotonic() - began)


class _Shares:
    """One run, with one share per worker at a time."""

    def __init__(
        self, client: Any, store: ResponseStore, order: Order, budget: Budget, tally: Tally, show: Show
    ) -> None:
        self._client, self._store, self._order = client, store, order
        self._budget, self._tally, self._show = budget, tally, show
        self._running: dict[Any, tuple[Share, Tokens]] = {}
        self._reserved = Tokens()
        self._seen = time.monotonic()  # when a worker was last connected

    def run(self, prompts: Sequence[Prompt], size: int) -> None:
        waiting = deque(each for each in _cut(prompts, size) if self._open(each))
        total = len(prompts)
        try:
            while waiting or self._running:
                workers = self._workers()
                while waiting and len(self._running) < workers and self._submit(waiting[0]):
                    waiting.popleft()
                if workers and not self._running:  # the budget allows no further share
                    self._tally.left += sum(len(self._open(each)) for each in waiting)
                    break
                self._collect()
                done = self._tally.found + self._tally.answered
                self._show(f"{done} of {total} prompts have a response; {len(self._running)} shares are running")
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                self._client.cancel(list(self._running), force=True)

    def _open(self, share: Share) -> list[Prompt]:
        return [prompt for prompt in share.prompts if not self._store.has(prompt.key)]

    def _workers(self) -> int:
        """Raises DeviceError if the scheduler is lost, or has no worker for a while."""
        count = len(known_workers(self._client))
        if count:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > _GONE_S:
            raise DeviceError("the scheduler has no worker", hint="Start one: `dask worker tcp://SCHEDULER:8786`.")
        return count

    def _submit(self, share: Share) -> bool:
        """Submit as many of the share's prompts as the budget allows. False if it allows none."""
        pending = self._open(share)
        limits, budget = self._budget.limits, self._budget
        bound = Tokens()
        for prompt in pending:
            more = bound + budget.bound(prompt.messages, self._order["sampling"]["max_tokens"])
            if not limits.allow(budget.spent + self._reserved + more):
                break
            bound = more
        if not bound.total:
            return False
        self._reserved += bound
        order = self._order | {
            "share": share.id,
            "limits": asdict(limits) | _within(limits, bound),
            "prompts": [(prompt.place, prompt.key, list(prompt.messages)) for prompt in pending],
        }
        key = f"edgecompress-label-{share.id}-{time.monotonic_ns()}"
        self._running[self._client.submit(label_share, order, key=key, pure=False)] = share, bound
        return True

    def _collect(self) -> None:
        killed = require_package("distributed.scheduler").KilledWorker
        for future in wait_for_any(self._running):
            share, bound = self._running.pop(future)
            self._reserved -= bound
            if future.status == "cancelled":
                raise connection_lost()
            try:
                answer: dict[str, Any] = future.result()
            except killed:
                raise DeviceError(
                    f"every worker that ran a share of {len(share.prompts)} prompts was lost",
                    hint="Check the workers' logs, then run the same command: it resumes from the store.",
                ) from None
            finally:
                future.release()
            self._take(share, answer)

    def _take(self, share: Share, answer: dict[str, Any]) -> None:
        """Merge the share's store, then let the worker delete it."""
        if (content := answer.get("store")) is not None:
            before = self._store.spent()
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "share.sqlite"
                path.write_bytes(content)
                new, _ = self._store.merge(path)
            self._tally.answered += new
            self._budget.spent += self._store.spent() - before
        for name in ("cut", "failed", "left", "retries"):
            setattr(self._tally, name, getattr(self._tally, name) + answer.get(name, 0))
        for reason, count in answer.get("reasons", {}).items():
            self._tally.reasons[reason] = self._tally.reasons.get(reason, 0) + count
        if (error := answer.get("error")) is not None:
            raise error_of(error, f"the worker {answer['worker']}")
        with contextlib.suppress(Exception):  # a lost worker keeps a file that is no longer needed
            self._client.run(forget, share.id, workers=[answer["worker"]])


def label_share(order: Order) -> dict[str, Any]:
    """The Dask task. Returns the share's responses as the content of a store, the error that ended it, or both."""
    from distributed import get_worker

    worker = get_worker()
    task = worker.get_current_task()

    answer: dict[str, Any] = {"worker": worker.address}
    try:
        if order["version"] != __version__:
            raise DeviceError(
                f"the worker has edgecompress {__version__}, not {order['version']}", hint="Install the same version."
            )
        path = _path(order["share"])
        path.parent.mkdir(parents=True, exist_ok=True)
        source = KeySource(**order["key"])
        endpoint, sampling = Endpoint(order["url"], order["model"]), Sampling(**order["sampling"])
        secret = read_secret(endpoint, source)
        asked = [Prompt(key=key, messages=tuple(told), place=place) for place, key, told in order["prompts"]]
        if any(secret.within(prompt.text) for prompt in asked):
            raise UsageError("a prompt contains the API key", hint="Remove the key from the prompt.")
        with open_store(path, endpoint, sampling) as store:
            run = Run(
                store,
                endpoint,
                secret,
                sampling,
                limits=_beyond(Limits(**order["limits"]), store.spent()),
                patience=RetryPolicy(**order["patience"]),
                concurrency=order["concurrency"],
                key=source,
                wanted=lambda: is_awaited(worker, task),
            )
            try:
                run_to_end(run.all(asked))
            finally:
                tally = asdict(run.tally)
                answer |= {name: tally[name] for name in ("cut", "failed", "left", "retries", "reasons")}
    except EdgeCompressError as error:
        told = {"type": type(error).__name__, "message": error.message, "hint": error.hint}
        answer["error"] = told | {"exit_code": error.exit_code}
    if _path(order["share"]).exists():  # closed, so the file is complete
        answer["store"] = _path(order["share"]).read_bytes()
    return answer


def forget(share: str) -> None:
    """Delete the store of a merged share."""
    _path(share).unlink(missing_ok=True)


def _path(share: str) -> Path:
    return depot.root().parent / "labels" / f"{share}.sqlite"


def _cut(prompts: Sequence[Prompt], size: int) -> list[Share]:
    """Split into shares, named by their content: the same prompts give the same names in another run."""
    shares = []
    for start in range(0, len(prompts), size):
        part = tuple(prompts[start : start + size])
        name = hashlib.sha256("".join(prompt.key for prompt in part).encode()).hexdigest()[:16]
        shares.append(Share(name, part))
    return shares


def _within(limits: Limits, bound: Tokens) -> dict[str, Any]:
    """A share's part of the budget."""
    return {
        "tokens": None if limits.tokens is None else bound.total,
        "money": None if limits.money is None else limits.cost(bound),
    }


def _beyond(limits: Limits, spent: Tokens) -> Limits:
    """The limits, raised by the cost of the responses that the worker has stored: these count already."""
    money = None if limits.money is None else limits.money + (limits.cost(spent) or 0.0)
    return replace(limits, tokens=None if limits.tokens is None else limits.tokens + spent.total, money=money)
