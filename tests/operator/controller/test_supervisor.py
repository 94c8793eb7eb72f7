"""The watches are started again whenever they end, and never take this event loop along."""

import asyncio
import contextlib
import threading

import pytest

from deepseek_operator.concurrency import within
from deepseek_operator.controller import metrics
from deepseek_operator.controller.supervisor import in_own_loop, supervise
from support.fakes.clock import ended


async def test_what_fails_or_ends_is_started_again_until_stopped() -> None:
    stop, runs = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    async def operate(_: asyncio.Event) -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise ConnectionError("API server is away")
        if len(runs) == 3:
            loop.call_soon_threadsafe(stop.set)

    before = metrics.WATCH_RESTARTS._value.get()
    await supervise(operate, stop, pause_s=0)
    assert len(runs) >= 3
    assert metrics.WATCH_RESTARTS._value.get() - before >= 2


@pytest.mark.parametrize("error", [asyncio.CancelledError("by kopf"), GeneratorExit()])
async def test_what_ends_by_no_exception_is_started_again(error: BaseException) -> None:
    stop, runs = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    async def operate(_: asyncio.Event) -> None:
        runs.append(len(runs))
        if len(runs) == 1:
            raise error
        loop.call_soon_threadsafe(stop.set)

    await within(5, supervise(operate, stop, pause_s=0))
    assert len(runs) >= 2


async def test_a_thread_that_cannot_begin_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    stop, new_event_loop, failures = asyncio.Event(), asyncio.new_event_loop, [OSError("too many open files")]
    loop = asyncio.get_running_loop()

    def failing() -> asyncio.AbstractEventLoop:
        if failures:
            raise failures.pop()
        return new_event_loop()

    async def operate(_: asyncio.Event) -> None:
        loop.call_soon_threadsafe(stop.set)

    monkeypatch.setattr(asyncio, "new_event_loop", failing)
    await within(5, supervise(operate, stop, pause_s=0))
    assert failures == []


async def test_a_cancellation_here_stops_it_there() -> None:
    begun, ended_there = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    async def operate(inner: asyncio.Event) -> None:
        loop.call_soon_threadsafe(begun.set)
        await inner.wait()
        ended_there.append(True)

    supervising = asyncio.create_task(supervise(operate, asyncio.Event()))
    await begun.wait()
    await ended(supervising)
    assert (supervising.cancelled(), ended_there) == (True, [True])


async def test_it_runs_in_a_loop_and_thread_of_its_own() -> None:
    seen = []

    async def operate(_: asyncio.Event) -> None:
        seen.append((asyncio.get_running_loop(), threading.get_ident()))

    await in_own_loop(operate, asyncio.Event())
    ((loop, thread),) = seen
    assert loop is not asyncio.get_running_loop()
    assert thread != threading.get_ident()
    assert loop.is_closed()


async def test_stopping_here_stops_it_there() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def operate(inner: asyncio.Event) -> None:
        loop.call_soon_threadsafe(stop.set)
        await inner.wait()

    await in_own_loop(operate, stop)


async def test_a_task_that_needs_a_second_cancellation_does_not_hold_it_up() -> None:
    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await asyncio.Event().wait()

    async def operate(_: asyncio.Event) -> None:
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        raise ConnectionError(f"{task.done()}")

    with pytest.raises(ConnectionError, match="False"):
        await in_own_loop(operate, asyncio.Event())
