"""Requests a teacher's response to each of many prompts from an endpoint, with retries, until each is stored once.

A response can be billed twice in one case: the endpoint generated it and it was lost, because the connection broke or
the process was killed. It is requested again, counted in ``LabellingResult.lost``, and charged to the budget at its
upper bound.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from edgecompress.distill.asking import RefusedError, TeacherClient, TryAgainError, UnknownHostError
from edgecompress.distill.budget import Budget, Limits, Tokens
from edgecompress.distill.data import CUT
from edgecompress.distill.endpoint import Endpoint, KeySource, Secret, parse_endpoint, read_secret
from edgecompress.distill.prompts import Prompt, Sampling, read_prompts
from edgecompress.distill.responses import Answer, ResponseStore, open_store
from edgecompress.errors import EndpointError, InterruptedRunError, UsageError

T = TypeVar("T")
Show = Callable[[str], None]
_LEAST_FAILURES_IN_A_ROW = 8  # failed prompts in a row that end the run: more prompts will not help
_TOLD_TIMES = 10
_LOOK_S = 0.25
_SHOWN_FAILURES = 20


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Tries per prompt, and the pause between them: exponential, with jitter, up to ``most_s``."""

    tries: int = 8
    base_s: float = 0.5
    most_s: float = 30.0
    timeout_s: float = 120.0  # between two chunks of a response

    def pause_s(self, failed: int) -> float:
        pause: float = min(self.base_s * 2 ** (failed - 1), self.most_s)
        return pause * random.uniform(0.5, 1.5)


@dataclass(frozen=True, kw_only=True)
class LabellingResult:
    """The contents of the store, and what this run added."""

    teacher: str
    store: str
    prompts: int  # in the file, each counted once
    repeated: int  # duplicate lines
    found: int  # answered by an earlier run
    answered: int  # by this run
    cut: int  # of those: cut off at max_tokens
    failed: int
    reasons: tuple[str, ...]  # of failures, the most frequent
    left: int  # not requested: the budget does not cover them
    retries: int
    lost: int  # requests of all runs without a response that may have been billed
    prompt_tokens: int  # of all runs; lost requests at their upper bound
    completion_tokens: int
    money: float | None  # None: the prices are unknown
    seconds: float

    @property
    def complete(self) -> bool:
        return self.found + self.answered == self.prompts


@dataclass(kw_only=True)
class Tally:
    """Counters of a run in progress."""

    found: int = 0
    answered: int = 0
    cut: int = 0
    failed: int = 0
    left: int = 0
    retries: int = 0
    failures_in_a_row: int = 0  # since the last answer
    reasons: dict[str, int] = field(default_factory=dict)


def label(
    prompts: Path,
    teacher: str,
    store: Path,
    *,
    concurrency: int = 8,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    patience: RetryPolicy | None = None,
    key: KeySource | None = None,
    without_response: bool = False,
    show: Show = lambda _: None,
) -> LabellingResult:
    """Store responses of ``openai:https://host/v1#model`` to every prompt of a file; resumes an interrupted run.

    ``without_response``: skip the lines that hold a response.

    Raises EndpointError for failures that affect every prompt (key, model, host), UsageError for invalid prompts or an
    invalid address, OutputError for the store, InterruptedRunError. The store stays consistent in every case.
    """
    sampling = sampling or Sampling()
    endpoint = parse_endpoint(teacher)
    secret = read_secret(endpoint, key)
    asked, repeated = read_prompts(prompts, endpoint, sampling, without_response=without_response)
    found = next((prompt for prompt in asked if secret.within(prompt.text)), None)
    if found is not None:
        raise UsageError(
            f"prompt {found.place + 1} of {prompts} contains the API key", hint="Remove the key from the prompt."
        )
    with open_store(store, endpoint, sampling) as kept:
        run = Run(
            kept,
            endpoint,
            secret,
            sampling,
            limits=limits or Limits(),
            patience=patience or RetryPolicy(),
            concurrency=concurrency,
            key=key,
            show=show,
        )
        began = time.monotonic()
        try:
            run_to_end(run.all(asked))
        except KeyboardInterrupt:
            raise interruption(run.tally, store) from None
        return summary(endpoint, store, kept, run.tally, run.limits, len(asked), repeated, time.monotonic() - began)


def summary(
    endpoint: Endpoint,
    store: Path,
    kept: ResponseStore,
    tally: Tally,
    limits: Limits,
    prompts: int,
    repeated: int,
    seconds: float,
) -> LabellingResult:
    spent = kept.spent()
    most_common = sorted(tally.reasons.items(), key=lambda item: -item[1])[:_SHOWN_FAILURES]
    return LabellingResult(
        teacher=str(endpoint),
        store=str(store),
        prompts=prompts,
        repeated=repeated,
        found=tally.found,
        answered=tally.answered,
        cut=tally.cut,
        failed=tally.failed,
        reasons=tuple(f"{count} × {reason}" for reason, count in most_common),
        left=tally.left,
        retries=tally.retries,
        lost=kept.lost(),
        prompt_tokens=spent.prompt,
        completion_tokens=spent.completion,
        money=limits.cost(spent),
        seconds=round(seconds, 1),
    )


def interruption(tally: Tally, store: Path) -> InterruptedRunError:
    return InterruptedRunError(
        f"interrupted; {tally.found + tally.answered} responses are in {store}",
        hint="Run the same command to resume.",
    )


class Run:
    """One run over some prompts. ``wanted`` is polled: False cancels the run."""

    def __init__(
        self,
        store: ResponseStore,
        endpoint: Endpoint,
        secret: Secret,
        sampling: Sampling,
        *,
        limits: Limits,
        patience: RetryPolicy,
        concurrency: int,
        key: KeySource | None = None,
        show: Show = lambda _: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        if concurrency < 1:
            raise UsageError(f"concurrency must be at least 1, not {concurrency}", hint="Omit --concurrency for 8.")
        self.limits, self.tally = limits, Tally()
        self._store, self._endpoint, self._secret, self._sampling = store, endpoint, secret, sampling
        self._patience, self._concurrency, self._key = patience, concurrency, key or KeySource()
        self._show, self._wanted = show, wanted
        self._waiting: deque[Prompt] = deque()
        self._resume_at = 0.0  # earliest time of the next request
        self._total, self._began = 0, time.monotonic()

    async def all(self, prompts: Sequence[Prompt]) -> None:
        """Run until each prompt has a response or a failure, or the budget is used up."""
        self._waiting.extend(prompt for prompt in prompts if not self._store.has(prompt.key))
        self._total, self.tally.found = len(prompts), len(prompts) - len(self._waiting)
        self._budget = Budget(self.limits, self._store.spent())
        # A thread of its own: SQLite waits for the disk at every step, and other requests continue meanwhile.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgecompress-store") as self._disk:
            async with TeacherClient(
                self._endpoint,
                self._secret,
                self._sampling,
                timeout_s=self._patience.timeout_s,
                key=self._key,
            ) as self._client:
                work = [self._work() for _ in range(min(self._concurrency, len(self._waiting)))]
                await run_concurrently(work, self._watch())

    async def _work(self) -> None:
        while self._waiting:
            prompt = self._waiting.popleft()
            self._tell()
            await self._one(prompt)
        self._tell()

    async def _one(self, prompt: Prompt) -> None:
        failed = told = 0  # told: the endpoint gave a Retry-After; limited as well
        while True:
            bound = self._budget.bound(prompt.messages, self._sampling.max_tokens)
            if not await self._budget.reserve(bound):
                self.tally.left += 1
                return
            try:
                await self._attempt(prompt, bound)
                return
            except RefusedError as error:
                await self._fail(prompt, error.reason, failed + 1)
                return
            except TryAgainError as error:
                failed, told = failed + (not error.after_s), told + bool(error.after_s)
                self._resume_at = max(self._resume_at, time.monotonic() + error.after_s)
                if failed >= self._patience.tries or told >= self._patience.tries * _TOLD_TIMES:
                    await self._fail(prompt, error.reason, failed + told)
                    return
                self.tally.retries += 1
                await asyncio.sleep(self._patience.pause_s(max(failed, 1)))

    async def _attempt(self, prompt: Prompt, bound: Tokens) -> None:
        """Record the attempt, send it, and count it, whatever the outcome."""
        actual = bound  # until the endpoint reports the usage
        try:
            while (pause := self._resume_at - time.monotonic()) > 0:
                await asyncio.sleep(pause + random.uniform(0, 0.1))
            attempt = await self._write(self._store.begin, prompt, bound)
            try:
                answer = await self._ask(prompt)
            except (RefusedError, TryAgainError) as error:
                if error.paid:
                    await self._write(self._store.lose, attempt)
                else:
                    actual = Tokens()
                    await self._write(self._store.drop, attempt)
                raise
            except EndpointError:
                await self._write(self._store.drop, attempt)
                raise
            actual = answer.tokens or bound
            await self._write(self._store.settle, attempt, prompt, answer, actual)
            self._count(prompt, answer, actual)
        finally:
            self._budget.settle(bound, actual)

    async def _ask(self, prompt: Prompt) -> Answer:
        try:
            return await self._client.ask(prompt)
        except UnknownHostError as error:
            if self.tally.answered:  # the host name resolved before, so the network is down
                raise TryAgainError("the host name no longer resolves", paid=False) from None
            raise EndpointError(error.message, hint=error.hint) from None

    def _count(self, prompt: Prompt, answer: Answer, tokens: Tokens) -> None:
        self.tally.answered += 1
        self.tally.failures_in_a_row = 0
        self.tally.cut += answer.finish == CUT
        if answer.tokens is not None:
            self._budget.learn(prompt.messages, tokens.prompt)

    async def _fail(self, prompt: Prompt, reason: str, tries: int) -> None:
        """Raises EndpointError if too many prompts have failed in a row."""
        await self._write(self._store.fail, prompt, reason, tries)
        self.tally.failed += 1
        self.tally.failures_in_a_row += 1
        self.tally.reasons[reason] = self.tally.reasons.get(reason, 0) + 1
        if self.tally.failures_in_a_row >= max(_LEAST_FAILURES_IN_A_ROW, self._concurrency):
            raise EndpointError(
                f"the last {self.tally.failures_in_a_row} prompts failed in a row at {self._endpoint.url}: {reason}",
                hint="Fix the cause, then run the same command: it resumes from the store.",
            )

    async def _write(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, lambda: function(*arguments))

    async def _watch(self) -> None:
        """Raises InterruptedRunError when the run is no longer wanted."""
        while self._wanted():
            await asyncio.sleep(_LOOK_S)
        raise InterruptedRunError("cancelled: the responses are no longer needed")

    def _tell(self) -> None:
        tally, spent = self.tally, self._budget.spent
        done = tally.found + tally.answered
        parts = [f"{done} of {self._total} prompts have a response", f"{spent.total} tokens"]
        if (money := self.limits.cost(spent)) is not None:
            parts.append(f"{money:.2f} spent")
        parts += [f"{tally.failed} failed"] * bool(tally.failed)
        seconds = time.monotonic() - self._began
        if tally.answered and seconds > 1:
            rate = tally.answered / seconds
            parts.append(f"{rate:.1f}/s, {(self._total - done) / rate:.0f} s left")
        self._show("; ".join(parts))


async def run_concurrently(work: Sequence[Coroutine[Any, Any, None]], watch: Coroutine[Any, Any, None]) -> None:
    """Run all of ``work``. The first failure, including one of ``watch``, cancels the rest and is raised."""
    watching = asyncio.ensure_future(watch)
    tasks = {asyncio.ensure_future(each) for each in work}
    try:
        open_ = set(tasks)
        while open_:
            done, _ = await asyncio.wait({*open_, watching}, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
            open_ -= done
    finally:
        for each in (*tasks, watching):
            each.cancel()
        await asyncio.gather(*tasks, watching, return_exceptions=True)


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work``. Ctrl-C and SIGTERM end it cleanly: pending writes finish, connections are closed.

    Raises KeyboardInterrupt for both: the event loop would lose an exception from a signal handler.
    """
    ended = False

    async def guarded() -> None:
        nonlocal ended
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def end() -> None:
            nonlocal ended
            ended = True
            task.cancel()

        if threading.current_thread() is not threading.main_thread():
            await work
            return
        previous = signal.getsignal(signal.SIGTERM)
        loop.add_signal_handler(signal.SIGTERM, end)
        try:
            await work
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            signal.signal(signal.SIGTERM, previous)

    try:
        asyncio.run(guarded())
    except asyncio.CancelledError:
        if ended:
            raise KeyboardInterrupt from None
        raise
    finally:
        with contextlib.suppress(RuntimeError):
            work.close()  # if it never started
