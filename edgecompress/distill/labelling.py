"""Ask a teacher behind an endpoint for a response to each of many prompts: each is asked for until it is stored, once.

What can be paid for twice, in theory: a response that the endpoint generated and that was lost on its way, because a
connection broke or a process was killed. Nobody but the endpoint knows of it. It is asked for again, counted in
``Labelled.lost``, and the budget counts it in full.
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

from edgecompress.distill.asking import Asker, RefusedError, TryAgainError, UnknownHostError
from edgecompress.distill.budget import Budget, Limits, Tokens
from edgecompress.distill.endpoint import Endpoint, KeySource, Secret, parse_endpoint, read_secret
from edgecompress.distill.prompts import Prompt, Sampling, read_prompts
from edgecompress.distill.responses import Answer, ResponseStore, open_store
from edgecompress.errors import EndpointError, InterruptedRunError, UsageError

T = TypeVar("T")
Show = Callable[[str], None]
_FEWEST_BARREN = 8  # prompts in a row that all failed: something is wrong that no further prompt will mend
_TOLD_TIMES = 10
_LOOK_S = 0.25
_SHOWN_FAILURES = 20


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How often a prompt is tried, and how long it is waited: exponentially, with jitter, up to ``most_s``."""

    tries: int = 8
    base_s: float = 0.5
    most_s: float = 30.0
    timeout_s: float = 120.0  # between two parts of a response

    def pause_s(self, failed: int) -> float:
        pause: float = min(self.base_s * 2 ** (failed - 1), self.most_s)
        return pause * random.uniform(0.5, 1.5)


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """What is in the store now, and what this run did for it."""

    teacher: str
    store: str
    prompts: int  # in the file, each counted once
    repeated: int  # lines that repeat another
    found: int  # had a response from an earlier run
    answered: int  # by this run
    cut: int  # of those: at the most tokens
    failed: int
    reasons: tuple[str, ...]  # of failures, some of them
    left: int  # not asked for: the budget does not reach
    retries: int
    lost: int  # requests of all runs whose response never came, and which may have been paid for
    prompt_tokens: int  # of all runs, lost requests with the most that they can have taken
    completion_tokens: int
    money: float | None  # None: the prices are not known
    seconds: float

    @property
    def complete(self) -> bool:
        return self.found + self.answered == self.prompts


@dataclass(kw_only=True)
class Tally:
    """What happens in a run."""

    found: int = 0
    answered: int = 0
    cut: int = 0
    failed: int = 0
    left: int = 0
    retries: int = 0
    barren: int = 0  # prompts that failed since one was answered
    reasons: dict[str, int] = field(default_factory=dict)


def label(
    prompts: Path,
    teacher: str,
    store: Path,
    *,
    concurrency: int = 8,
    sampling: Sampling | None = None,
    limits: Limits | None = None,
    patience: Patience | None = None,
    key: KeySource | None = None,
    show: Show = lambda _: None,
) -> Labelled:
    """Responses of ``openai:https://host/v1#model`` to every prompt of a file, in ``store``; a run that ended goes on.

    Raises EndpointError for what no other prompt would change (the key, the model, the host), UsageError for prompts or
    an address without sense, OutputError for the store, InterruptedRunError; the store is whole whatever ends it.
    """
    sampling = sampling or Sampling()
    endpoint = parse_endpoint(teacher)
    secret = read_secret(endpoint, key)
    asked, repeated = read_prompts(prompts, endpoint, sampling)
    found = next((prompt for prompt in asked if secret.within(prompt.text)), None)
    if found is not None:
        raise UsageError(f"prompt {found.place + 1} of {prompts} holds the API key", hint="Take it out of there.")
    with open_store(store, endpoint, sampling) as kept:
        run = Run(
            kept,
            endpoint,
            secret,
            sampling,
            limits=limits or Limits(),
            patience=patience or Patience(),
            concurrency=concurrency,
            key=key,
            show=show,
        )
        began = time.monotonic()
        try:
            finish(run.all(asked))
        except KeyboardInterrupt:
            raise stopped(run.tally, store) from None
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
) -> Labelled:
    spent = kept.spent()
    most_common = sorted(tally.reasons.items(), key=lambda item: -item[1])[:_SHOWN_FAILURES]
    return Labelled(
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


def stopped(tally: Tally, store: Path) -> InterruptedRunError:
    return InterruptedRunError(
        f"interrupted; {tally.found + tally.answered} responses are in {store}",
        hint="The same command goes on from there.",
    )


class Run:
    """One run over some prompts. ``wanted`` is asked now and then whether anybody still waits for it."""

    def __init__(
        self,
        store: ResponseStore,
        endpoint: Endpoint,
        secret: Secret,
        sampling: Sampling,
        *,
        limits: Limits,
        patience: Patience,
        concurrency: int,
        key: KeySource | None = None,
        show: Show = lambda _: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        if concurrency < 1:
            raise UsageError(f"concurrency is at least 1, not {concurrency}", hint="Leave it out for 8.")
        self.limits, self.tally = limits, Tally()
        self._store, self._endpoint, self._secret, self._sampling = store, endpoint, secret, sampling
        self._patience, self._concurrency, self._key = patience, concurrency, key or KeySource()
        self._show, self._wanted = show, wanted
        self._waiting: deque[Prompt] = deque()
        self._resume_at = 0.0  # nobody asks before
        self._total, self._began = 0, time.monotonic()

    async def all(self, prompts: Sequence[Prompt]) -> None:
        """Until each has a response or a failure, or the budget is spent."""
        self._waiting.extend(prompt for prompt in prompts if not self._store.has(prompt.key))
        self._total, self.tally.found = len(prompts), len(prompts) - len(self._waiting)
        self._budget = Budget(self.limits, self._store.spent())
        # One thread: SQLite waits for the disk at every step, and the other requests need not.
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgecompress-store") as self._disk:
            async with Asker(
                self._endpoint,
                self._secret,
                self._sampling,
                timeout_s=self._patience.timeout_s,
                key=self._key,
            ) as self._asker:
                work = [self._work() for _ in range(min(self._concurrency, len(self._waiting)))]
                await together(work, self._watch())

    async def _work(self) -> None:
        while self._waiting:
            prompt = self._waiting.popleft()
            self._tell()
            await self._one(prompt)
        self._tell()

    async def _one(self, prompt: Prompt) -> None:
        failed = told = 0  # told when to come again: no fault of the prompt's, but not for ever
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
        """Written down, sent, and counted, whatever becomes of it."""
        actual = bound  # until it is known better
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
            return await self._asker.ask(prompt)
        except UnknownHostError as error:
            if self.tally.answered:  # the host was known before: the network has gone
                raise TryAgainError("its host is not known any more", paid=False) from None
            raise EndpointError(error.message, hint=error.hint) from None

    def _count(self, prompt: Prompt, answer: Answer, tokens: Tokens) -> None:
        self.tally.answered += 1
        self.tally.barren = 0
        self.tally.cut += answer.finish == "length"
        if answer.tokens is not None:
            self._budget.learn(prompt.messages, tokens.prompt)

    async def _fail(self, prompt: Prompt, reason: str, tries: int) -> None:
        """Raises EndpointError if prompts have failed and failed, and nothing else happened."""
        await self._write(self._store.fail, prompt, reason, tries)
        self.tally.failed += 1
        self.tally.barren += 1
        self.tally.reasons[reason] = self.tally.reasons.get(reason, 0) + 1
        if self.tally.barren >= max(_FEWEST_BARREN, self._concurrency):
            raise EndpointError(
                f"the last {self.tally.barren} prompts failed at {self._endpoint.url}, one after the other: {reason}",
                hint="Run it again when that is mended: it goes on from what is stored.",
            )

    async def _write(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._disk, lambda: function(*arguments))

    async def _watch(self) -> None:
        """Raises InterruptedRunError when nobody waits for them any more."""
        while self._wanted():
            await asyncio.sleep(_LOOK_S)
        raise InterruptedRunError("nobody waits for these responses any more")

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
            parts.append(f"{rate:.1f}/s, {(self._total - done) / rate:.0f} s to go")
        self._show("; ".join(parts))


async def together(work: Sequence[Coroutine[Any, Any, None]], watch: Coroutine[Any, Any, None]) -> None:
    """All of the work; the first that fails, or ``watch``, ends the others, and its error is the one that is raised."""
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


def finish(work: Coroutine[Any, Any, None]) -> None:
    """Run it. Ctrl-C and SIGTERM end it in order: what is being written is written, connections are closed.

    Raises KeyboardInterrupt for both. An exception out of a signal handler would be lost in the event loop.
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
            work.close()  # if it never began
