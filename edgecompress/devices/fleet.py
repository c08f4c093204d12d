"""Jobs on a fleet of devices, over Dask: each goes to a worker with its label, one at a time per worker.

The user starts one worker per device, with one thread and the device's label as a resource::

    dask worker tcp://scheduler:8786 --nthreads 1 --resources "target:raspberry-pi-5=1"

Dask's resources are numbers, which is why the label is the name: ``target=raspberry-pi-5`` is refused by Dask itself.
When a worker is lost, the scheduler gives its job to another, up to ``distributed.scheduler.allowed-failures`` times.
Everyone who can connect to a scheduler can run any code on its workers: keep it in a private network or use ``tls://``.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgecompress.devices import depot, worker
from edgecompress.devices.jobs import Job, JobRequest, Plan
from edgecompress.devices.push import Show, refusal
from edgecompress.devices.run import read_outcome
from edgecompress.devices.ssh import require_package
from edgecompress.devices.store import ResultStore, open_store
from edgecompress.errors import DeviceError, EdgeCompressError, UsageError
from edgecompress.types.fleet import Failure, FleetResult, FleetRow
from edgecompress.version import __version__

LABEL = "target:"  # before the label, in the name of the resource
_CONNECT_S = 10
_WAIT_S = 10.0  # for a worker with the label
_TURN_S, _LOOK_S = 0.5, 0.02
_CHUNK_BYTES = 1 << 22
_MISSING_TIMES = 3
_START = 'dask worker {address} --nthreads 1 --resources "target:{label}=1"'


def profile_on_fleet(
    requests: Sequence[JobRequest], address: str, labels: Sequence[str], output: Path | None, show: Show
) -> FleetResult:
    """Profile on the workers of the scheduler at ``address``; ``labels``: for requests that name none (all).

    ``output``: a file of JSON lines; jobs with a result in it are not run again. Raises DeviceError if no worker has a
    label or the scheduler is lost, UsageError and BundleError for invalid requests, before anything runs.
    """
    plan = Plan(requests)
    show(f"connecting to {address}")
    with connect_fleet(address) as client:
        here = wait_for_labels(client, address, plan.labels(labels), _WAIT_S)
        jobs = plan.jobs(labels or list(here))
        with open_store(output) as store:
            return Fleet(client, store, show).run(jobs)


@contextlib.contextmanager
def connect_fleet(address: str) -> Iterator[Any]:
    """A Dask client. Raises UsageError and DeviceError."""
    if not address.startswith(("tcp://", "tls://", "ucx://")):
        raise UsageError(f"'{address}' is not the address of a scheduler", hint="Give --fleet tcp://scheduler:8786.")
    distributed = require_package("distributed")
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # failures are raised as our own errors
    try:
        client = distributed.Client(address, timeout=_CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise DeviceError(
            f"no Dask scheduler answers at {address}: {str(error).splitlines()[0][:200]}",
            hint="Start it with `dask scheduler`, which prints its address.",
        ) from None
    try:
        yield client
    finally:
        client.close(timeout=_CONNECT_S)


def known_workers(client: Any) -> dict[str, dict[str, Any]]:
    """Address -> the scheduler's record of the worker. Raises DeviceError if the connection was lost."""
    if client.status != "running":
        raise connection_lost()
    try:
        workers: dict[str, dict[str, Any]] = client.scheduler_info(n_workers=-1)["workers"]
    except OSError:
        raise connection_lost() from None
    return workers


def labels_of(client: Any) -> dict[str, list[str]]:
    """Label -> addresses of its workers. Raises DeviceError if the connection was lost."""
    found: dict[str, list[str]] = {}
    for address, info in known_workers(client).items():
        for name, amount in info.get("resources", {}).items():
            if name.startswith(LABEL) and amount >= 1:
                found.setdefault(name.removeprefix(LABEL), []).append(address)
    return dict(sorted(found.items()))


def wait_for_any(futures: Iterable[Any]) -> list[Any]:
    """The finished ones. Waits at most half a second for the first of them."""
    pending = list(futures)
    until = time.monotonic() + _TURN_S
    while not any(each.done() for each in pending) and time.monotonic() < until:
        time.sleep(_LOOK_S)
    return [each for each in pending if each.done()]


def connection_lost() -> DeviceError:
    return DeviceError(
        "the connection to the scheduler was lost",
        hint="Run it again with the same -o: it keeps the results that arrived, and runs only the rest.",
    )


def wait_for_labels(client: Any, address: str, labels: Sequence[str], wait_s: float) -> dict[str, list[str]]:
    """Wait for every label of ``labels``, or for any if that is empty. Raises DeviceError that names those present."""
    until = time.monotonic() + wait_s
    while True:
        here = labels_of(client)
        lacking = [label for label in labels if label not in here]
        if here and not lacking:
            return here
        if time.monotonic() > until:
            break
        time.sleep(_TURN_S)
    label = lacking[0] if lacking else "raspberry-pi-5"
    there = ", ".join(f"{name} ({len(workers)})" for name, workers in here.items()) or "none"
    raise DeviceError(
        f"no worker at {address} has the label '{label}'" if lacking else f"no worker at {address} has a label",
        hint=f"Labels present: {there}. On the device, run: {_START.format(address=address, label=label)}",
    )


class Fleet:
    """One run of jobs. ``task`` runs on a worker; ``gone_s``: how long a label may be without any worker."""

    def __init__(
        self,
        client: Any,
        store: ResultStore,
        show: Show,
        *,
        task: Callable[[worker.Order], dict[str, Any]] = worker.run_job,
        gone_s: float = 60.0,
    ) -> None:
        self._client, self._store, self._show, self._task, self._gone_s = client, store, show, task, gone_s
        self._waiting: dict[str, deque[Job]] = defaultdict(deque)
        self._running: dict[Any, Job] = {}
        self._sending: dict[tuple[str, str], Future[None]] = {}  # by worker and payload
        self._sender = ThreadPoolExecutor(max_workers=8, thread_name_prefix="edgecompress-send")
        self._attempts: Counter[str] = Counter()
        self._missing_reports: Counter[str] = Counter()
        self._seen: dict[str, float] = {}  # when a label was last there

    def run(self, jobs: Sequence[Job]) -> FleetResult:
        """Run until each job has a profile or a failure. Raises DeviceError if the scheduler is lost."""
        found = sum(self._store.has(job.id) for job in jobs)
        for job in jobs:
            if not self._store.has(job.id):
                self._waiting[job.label].append(job)
        self._client.subscribe_topic(worker.TOPIC, self._note)
        at_first: dict[str, int] | None = None
        try:
            while self._running or any(self._waiting.values()):
                here = self._here()
                at_first = at_first or {label: len(workers) for label, workers in here.items()}
                self._hand_out(here)
                self._collect()
                done = sum(job.id in self._store.rows for job in jobs)
                self._show(f"{done} of {len(jobs)} jobs done, {len(self._running)} running")
        finally:
            with contextlib.suppress(Exception):  # the scheduler may be gone
                self._client.cancel(list(self._running), force=True)
                self._client.unsubscribe_topic(worker.TOPIC)
            self._sender.shutdown(wait=False, cancel_futures=True)
        rows = tuple(self._store.rows[job.id] for job in jobs)
        return FleetResult(
            tool_version=__version__,
            rows=rows,
            found=found,
            duplicates=self._store.duplicates,
            retried=sum(max(0, self._attempts[job.id] - 1) for job in jobs),
            workers=at_first or {},
        )

    def _here(self) -> dict[str, list[str]]:
        here = labels_of(self._client)
        now = time.monotonic()
        for label in [*here, *self._waiting]:
            if label in here or label not in self._seen:
                self._seen[label] = now
        return here

    def _hand_out(self, here: dict[str, list[str]]) -> None:
        """Submit as many of a label's jobs as it has workers, so that a lost worker identifies its job."""
        running = Counter(job.label for job in self._running.values())
        for label, queue in self._waiting.items():
            workers = here.get(label, [])
            if not workers and time.monotonic() - self._seen[label] > self._gone_s:
                self._give_up(label)
            while queue and workers:
                job = queue[0]
                ready = self._ready(job, workers)
                if ready is None:
                    queue.popleft()
                elif running[label] < ready:
                    self._submit(queue.popleft())
                    running[label] += 1
                else:
                    break

    def _submit(self, job: Job) -> None:
        order = worker.Order(job=job.id, files=[each.file for each in job.parcels], command=list(job.command))
        number = self._attempts[job.id] + self._missing_reports[job.id]
        key = f"edgecompress-{job.id}-{number}-{time.monotonic_ns()}"
        future = self._client.submit(
            self._task, order, key=key, pure=False, retries=2, resources={LABEL + job.label: 1}
        )
        self._running[future] = job

    def _ready(self, job: Job, workers: list[str]) -> int | None:
        """How many workers have the job's files; the others are being sent them. None: the job failed."""
        ready = 0
        for address in workers:
            key = address, job.payload
            sending = self._sending.get(key)
            if sending is None:
                self._sending[key] = self._sender.submit(self._send, job, address)
            elif sending.done():
                error = sending.exception()
                if isinstance(error, EdgeCompressError):
                    self._fail(job, error, address)
                    return None
                if error is not None:  # most likely the worker was lost while it received them
                    del self._sending[key]
                else:
                    ready += 1
        return ready

    def _send(self, job: Job, address: str) -> None:
        """Send the files that the worker lacks. Raises DeviceError if it cannot store them."""
        parcels = job.parcels
        for _ in range(2):
            answer = self._call(address, worker.look, [each.file for each in parcels])
            if answer["version"] != __version__:
                raise DeviceError(
                    f"the worker {address} has edgecompress {answer['version']}, this machine {__version__}",
                    hint=f"Install edgecompress {__version__} there.",
                )
            if not answer["need"]:
                return
            needed = depot.needed_bytes([each.file for each in parcels], answer["need"])
            if needed > answer["free_bytes"]:
                full = {"error": "full", "needed_bytes": needed, "free_bytes": answer["free_bytes"]}
                raise refusal(full, f"the worker {address}")
            for each in answer["need"]:
                sending, at = parcels[each["index"]], each["offset"]
                for data in sending.chunks(at, _CHUNK_BYTES):
                    self._call(address, worker.take, sending.file, at, data)
                    at += len(data)
                self._call(address, worker.settle, sending.file)
        raise refusal({"error": "altered", "path": sending.path}, f"the worker {address}")

    def _call(self, address: str, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._client.run(function, *arguments, workers=[address])[address]
        except ModuleNotFoundError as error:
            raise DeviceError(
                f"the worker {address} lacks the package '{error.name}'",
                hint="In its environment, run: pip install 'edgecompress[devices]'",
            ) from None
        if "error" in answer:
            raise refusal(answer, f"the worker {address}")
        return answer

    def _collect(self) -> None:
        killed = require_package("distributed.scheduler").KilledWorker
        for future in wait_for_any(self._running):
            job = self._running.pop(future)
            if future.status == "cancelled":
                raise connection_lost()
            try:
                answer = future.result()
            except killed as error:
                self._fail(job, _worker_lost(error), error.last_worker.address)
            except Exception as error:  # of the task, after its retries
                self._fail(job, DeviceError(f"{type(error).__name__}: {error}", hint="See the worker's log."), None)
            else:
                self._take(job, answer)
            finally:
                future.release()

    def _take(self, job: Job, answer: dict[str, Any]) -> None:
        address = answer["worker"]
        if answer.get("missing"):
            self._missing_reports[job.id] += 1
            sending = self._sending.get((address, job.payload))
            if sending is not None and sending.done():
                del self._sending[address, job.payload]
                if self._missing_reports[job.id] > _MISSING_TIMES:
                    error = DeviceError(
                        f"the worker {address} loses the bundle's files", hint="Check whether its disk is full."
                    )
                    self._fail(job, error, address)
                    return
            self._waiting[job.label].append(job)
            return
        try:
            profile = read_outcome(answer["exit"], answer["stdout"], answer["stderr"], f"{job.label}, {address}")
        except EdgeCompressError as error:
            self._fail(job, error, address)
        else:
            self._store.add(self._row(job, worker=address, profile=replace(profile, bundle=job.bundle.name)))

    def _fail(self, job: Job, error: EdgeCompressError, address: str | None) -> None:
        failure = Failure(type=type(error).__name__, message=error.message, hint=error.hint, exit_code=error.exit_code)
        self._store.add(self._row(job, worker=address, failure=failure))

    def _give_up(self, label: str) -> None:
        error = DeviceError(
            f"no worker with the label '{label}' for {self._gone_s:g} s",
            hint=f"Start one, then run this again: {_START.format(address='SCHEDULER', label=label)}",
        )
        for future in [each for each, job in self._running.items() if job.label == label]:
            self._waiting[label].append(self._running.pop(future))
            future.cancel(force=True)
        while self._waiting[label]:
            self._fail(self._waiting[label].popleft(), error, None)

    def _row(self, job: Job, **outcome: Any) -> FleetRow:
        return FleetRow(
            job=job.id,
            bundle=job.bundle.name,
            identity=job.identity,
            target=job.label,
            asked=job.flags,
            run=job.run,
            attempts=max(1, self._attempts[job.id]),
            **outcome,
        )

    def _note(self, event: tuple[float, Any]) -> None:
        self._attempts[event[1]["job"]] += 1


def _worker_lost(error: Any) -> DeviceError:
    return DeviceError(
        f"its worker was lost {error.allowed_failures + 1} times, last {error.last_worker.address}",
        hint="Its memory may be full, or its power supply too weak: see the worker's log, then run this again.",
    )
