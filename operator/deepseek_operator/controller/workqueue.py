"""A queue of passes: one at a time for each key, many keys at once.

The queue adds what watch events lack.  A pass that failed is tried again after a pause that grows.  A pass can ask for
another one at a given time.  And a hundred events at once, as when a hundred pods start, cause few passes.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Final

from deepseek_operator.concurrency import contained
from deepseek_operator.controller import metrics
from deepseek_operator.controller.semaphore import DeadlineSemaphore
from deepseek_operator.objects.observed import OwnerKey

log = logging.getLogger(__name__)

FIRST_BACKOFF_S: Final = 1.0
LONGEST_BACKOFF_S: Final = 60.0
SETTLE_S: Final = 1.0  # pause after a pass, during which events gather
FIRST_SETTLE_S: Final = 0.5  # pause after a first pass, during which others come and pods are made
PATIENCE_S: Final = 10.0  # so long a later pass yields to first passes, which start pods
CONCURRENCY: Final = 32

Pass = Callable[[OwnerKey], Coroutine[Any, Any, float | None]]


async def alarm(event: asyncio.Event, timeout_s: float | None) -> None:
    """Return when `event` is set; after `timeout_s` the alarm sets it.  Thousands of keys wait so: it needs no task."""
    timer = None if timeout_s is None else asyncio.get_running_loop().call_later(timeout_s, event.set)
    try:
        await event.wait()
    finally:
        if timer:
            timer.cancel()


def backoff(failures: int, luck: float) -> float:
    """Seconds to wait after `failures` in a row, at least one.  `luck` in [0, 1) takes away up to half of them."""
    longest: float = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 10))
    return longest * (0.5 + luck / 2)


class WorkQueue:
    """Runs `work(key)`, which returns the seconds until it wants to run again; None: on the next event."""

    def __init__(
        self,
        work: Pass,
        *,
        concurrency: int = CONCURRENCY,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[asyncio.Event, float | None], Awaitable[None]] = alarm,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._work, self._clock, self._wait, self._luck = work, clock, wait, luck
        self._semaphore = DeadlineSemaphore(concurrency)
        self._wake: dict[OwnerKey, asyncio.Event] = {}
        self._tasks: dict[OwnerKey, asyncio.Task[None]] = {}
        self._due: dict[OwnerKey, float] = {}
        self._rested: dict[
            OwnerKey, float
        ] = {}  # when the last pass over a key ended, of those that just have none left
        self._newest = -math.inf  # when the newest first pass over any key ended

    def add(self, key: OwnerKey) -> None:
        """Start at least one more pass over `key` after this call, because something happened to it."""
        self._wake.setdefault(key, asyncio.Event()).set()
        if key not in self._tasks or self._tasks[key].done():
            self._tasks[key] = task = asyncio.create_task(self._run(key), name=f"passes over {key}")
            task.add_done_callback(partial(self._ended, key))

    def add_all(self) -> None:
        """Start one more pass over each key that has one planned: something may have happened to it."""
        for key in tuple(self._tasks):
            self.add(key)

    def revive(self) -> None:
        """Start a pass over each key that nobody works on, although its last pass did not end the work."""
        for key, task in [(key, task) for key, task in self._tasks.items() if task.done()]:
            metrics.REVIVED.inc()
            cause = None if task.cancelled() else task.exception()
            log.error("nobody worked on %s any more, so a pass over it starts", key, exc_info=cause)
            self.add(key)

    def __len__(self) -> int:
        """The number of keys with a pass due, under way or planned."""
        return len(self._tasks)

    def oldest_s(self) -> float:
        """How many seconds the oldest waiting or running pass has been due."""
        return self._clock() - min(self._due.values(), default=self._clock())

    async def close(self) -> None:
        """Cancel all passes, planned ones and those under way.  The next operator repeats them."""
        tasks = tuple(self._tasks.values())
        self._tasks.clear()
        self._wake.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, key: OwnerKey) -> None:
        wake, failures, pause = self._wake[key], 0, self._pause_left(key)
        is_new = pause <= 0
        if not is_new:
            await self._wait(asyncio.Event(), pause)
        while True:
            wake.clear()
            delay, failures = await self._pass(key, failures, is_new=is_new)
            was_new, is_new = is_new and not failures, False
            if delay is None and not wake.is_set():
                self._rested[key] = self._clock()
                break
            if delay != 0:
                await (self._settle_first() if was_new else self._wait(asyncio.Event(), SETTLE_S))
                await self._wait(wake, delay)
        del self._wake[key], self._tasks[key]

    def _pause_left(self, key: OwnerKey) -> float:
        """The seconds that are left of the pause after the last pass over `key`, or 0."""
        now = self._clock()
        while self._rested and next(iter(self._rested.values())) <= now - SETTLE_S:
            del self._rested[next(iter(self._rested))]
        return self._rested.pop(key, now - SETTLE_S) + SETTLE_S - now

    def _ended(self, key: OwnerKey, task: asyncio.Task[None]) -> None:
        """Count a pass as due from now on if `task` ended before its work did."""
        if self._tasks.get(key) is task:
            self._due[key] = self._clock()

    async def _settle_first(self) -> None:
        """Wait while first passes over other keys go on, at most PATIENCE_S."""
        self._newest = self._clock()
        end = self._newest + PATIENCE_S
        while (left := min(self._newest + FIRST_SETTLE_S, end) - self._clock()) > 0:
            await self._wait(asyncio.Event(), left)

    async def _pass(self, key: OwnerKey, failures: int, *, is_new: bool) -> tuple[float | None, int]:
        """Run one pass.  Returns the seconds until the next one, and the number of failures in a row."""
        self._due[key] = self._clock()
        try:
            async with self._semaphore.held(self._due[key] + (0 if is_new else PATIENCE_S)):
                return await contained(self._timed(key)), 0
        except Exception as error:
            delay = backoff(failures + 1, self._luck())
            log.warning("the pass over %s failed, next try in %.1f s: %s: %s", key, delay, type(error).__name__, error)
            log.debug("traceback of the failed pass over %s", key, exc_info=error)
            return delay, failures + 1
        finally:
            del self._due[key]

    async def _timed(self, key: OwnerKey) -> float | None:
        start, outcome = self._clock(), "failed"
        try:
            delay = await self._work(key)
            outcome = "done"
            return delay
        finally:
            metrics.PASSES.labels(outcome).observe(self._clock() - start)
