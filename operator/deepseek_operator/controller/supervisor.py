"""Keeps the watches alive by starting kopf again whenever it ends, in an event loop of its own.

Several answers of an API server that is being upgraded end kopf.  When it ends, it cancels every task of its event
loop, and passes must not be among them.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final

from deepseek_operator.concurrency import contained, wait_for
from deepseek_operator.controller import metrics
from deepseek_trainer.contract.foreign import first_line

log = logging.getLogger(__name__)

PAUSE_S: Final = 1.0
PATIENCE_S: Final = 0.5  # for cancelled tasks to end
CANCELLATIONS: Final = 5

Operate = Callable[[asyncio.Event], Awaitable[None]]  # runs until the event is set, or until something goes wrong


async def supervise(operate: Operate, stop: asyncio.Event, *, pause_s: float = PAUSE_S) -> None:
    """Run `operate` again and again until `stop` is set."""
    while not stop.is_set():
        try:
            await contained(in_own_loop(operate, stop))
            ended = "it ended by itself"
        except Exception as error:
            ended = f"{type(error).__name__}: {first_line(error)}"
        if not stop.is_set():
            metrics.WATCH_RESTARTS.inc()
            log.warning("the watches stopped and start again in %.1f s: %s", pause_s, ended)
            await wait_for(stop, pause_s)


async def in_own_loop(operate: Operate, stop: asyncio.Event) -> None:
    """Run `operate` in a thread with a new event loop.  Setting `stop` here stops it there."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def main() -> None:
        inner = asyncio.Event()
        started.set_result((asyncio.get_running_loop(), inner))
        await operate(inner)

    thread = asyncio.create_task(asyncio.to_thread(_run_in_new_loop, main))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({thread, stopped}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        if not thread.done():
            started.add_done_callback(_stop)
        await thread


def _stop(started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    loop, stop = started.result()
    with contextlib.suppress(RuntimeError):  # the loop is closed: it has just ended by itself
        loop.call_soon_threadsafe(stop.set)


def _run_in_new_loop(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """As asyncio.run, but cancel tasks more than once, since some wait for each other while they end."""
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(main())
    finally:
        for _ in range(CANCELLATIONS):
            if left := asyncio.all_tasks(loop):
                for task in left:
                    task.cancel()
                loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE_S))
        loop.close()
