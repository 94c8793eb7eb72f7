"""Coroutines side by side, for a limited time, and apart from the task that waits for them.

Each function runs its parts in tasks of their own, never cancels the task that called it, and leaves no part running.
So a CancelledError that it raises means that somebody cancelled the caller.  If a part ends by a CancelledError that
nobody asked for, that is an error like any other: StrayError.

asyncio's own functions do not keep to this in Python 3.11.2, which Debian 12 has.  An asyncio.TaskGroup of which a
member failed leaves a request for cancellation behind in its task, and every later asyncio.timeout in that task raises
CancelledError where it should raise TimeoutError.  The linter forbids them.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from deepseek_trainer.contract.foreign import first_line

Result = TypeVar("Result")


class StrayError(Exception):
    """A part ended by what is no Exception, such as a CancelledError that nobody asked for."""


async def gathered(*parts: Coroutine[Any, Any, Result]) -> list[Result]:
    """The results of all parts, in their order.  The first error cancels the other parts and is raised."""
    async with _running(parts) as tasks:
        left = set(tasks)
        while left:
            ended, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
            _results(ended)
        return _results(tasks)


async def first(*parts: Coroutine[Any, Any, Any]) -> None:
    """Return when the first part ends, and cancel the others.  Raises its error."""
    async with _running(parts) as tasks:
        ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        _results(ended)


async def within(seconds: float | None, part: Coroutine[Any, Any, Result]) -> Result:
    """The result of `part`.  Cancels it and raises TimeoutError if it takes longer than `seconds`; None: never."""
    async with _running((part,)) as tasks:
        ended, _ = await asyncio.wait(tasks, timeout=seconds)
        if not ended:
            raise TimeoutError(f"it took longer than {seconds} s")
        return _results(tasks)[0]


async def contained(part: Coroutine[Any, Any, Result]) -> Result:
    """The result of `part`.  All that it raises is an Exception, and it cannot leave the caller cancelled."""
    return await within(None, part)


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> None:
    """Return when `event` is set, or after `timeout_s`."""
    waiting = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((waiting,), timeout=timeout_s)
    finally:
        waiting.cancel()


@asynccontextmanager
async def _running(parts: Iterable[Coroutine[Any, Any, Result]]) -> AsyncIterator[list[asyncio.Task[Result]]]:
    """The tasks of `parts`.  At the end, those that are left are cancelled, and have ended."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        yield tasks
    finally:
        left = [task for task in tasks if not task.done()]
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # so that asyncio does not warn of one that was never retrieved


def _results(tasks: Iterable[asyncio.Task[Result]]) -> list[Result]:
    return [_result(task) for task in tasks]


def _result(task: asyncio.Task[Result]) -> Result:
    """The result of a task that has ended.  What is to end the process (Ctrl-C, sys.exit) ends it."""
    try:
        return task.result()
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise StrayError(f"ended by a stray {type(error).__name__}: {first_line(error)}") from error
