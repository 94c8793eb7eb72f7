"""Time that a test moves by hand."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class FakeTime:
    """Clock, sleep and wait for code that takes them as arguments; nothing here ever waits for real time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Event]] = []

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        await self.wait(asyncio.Event(), seconds)

    async def within(self, seconds: float, part: Coroutine[Any, Any, Result]) -> Result:
        """As concurrency.within."""
        over = asyncio.create_task(self.sleep(seconds))
        work = asyncio.create_task(part)
        try:
            await asyncio.wait((work, over), return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise TimeoutError
            return work.result()
        finally:
            work.cancel()
            over.cancel()

    async def wait(self, event: asyncio.Event, timeout_s: float | None) -> None:
        over = asyncio.Event()
        if timeout_s is not None:
            self._sleepers.append((self.now + timeout_s, over))
        waits = [asyncio.create_task(event.wait()), asyncio.create_task(over.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def advance(self, seconds: float) -> None:
        """Let `seconds` pass, and all that was due in them happen in its order."""
        end = self.now + seconds
        await quiet()
        while due := [sleeper for sleeper in self._sleepers if sleeper[0] <= end]:
            first = min(due, key=lambda sleeper: sleeper[0])
            self._sleepers.remove(first)
            self.now = max(self.now, first[0])
            first[1].set()
            await quiet()
        self.now = end


async def quiet() -> None:
    """Until every task has done what it can without waiting."""
    for _ in range(20):
        await asyncio.sleep(0)


async def ended(task: "asyncio.Task[object]") -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
