"""Parts of a task: side by side, for a limited time, and never to the harm of the task itself."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from deepseek_operator.concurrency import StrayError, contained, first, gathered, wait_for, within
from support.fakes import old_python
from support.fakes.clock import ended, quiet

Part = Coroutine[Any, Any, Any]


class Endless:
    """A part without an end; knows whether it was cancelled, and needs a moment to end then."""

    def __init__(self) -> None:
        self.has_ended = False

    async def run(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.has_ended = True


async def answer(value: int, after: int = 0) -> int:
    for _ in range(after):
        await asyncio.sleep(0)
    return value


async def fail(error: BaseException) -> None:
    await asyncio.sleep(0)
    raise error


def cancelling() -> int:
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()


async def test_parts_run_side_by_side_and_answer_in_their_order() -> None:
    assert await gathered(answer(1, after=9), answer(2), answer(3, after=4)) == [1, 2, 3]
    assert await gathered() == []


WAYS: dict[str, Callable[..., Part]] = {
    "gathered": gathered,
    "first": first,
    "within": lambda *parts: within(9, parts[0]),
    "contained": lambda *parts: contained(parts[0]),
}


@pytest.mark.parametrize("way", [gathered, first])
async def test_the_first_error_ends_the_others_before_it_is_raised(way: Callable[..., Part]) -> None:
    others = [Endless(), Endless()]
    with pytest.raises(ConnectionError, match="busy"):
        await way(others[0].run(), fail(ConnectionError("busy")), others[1].run())
    assert [other.has_ended for other in others] == [True, True]
    assert cancelling() == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [asyncio.CancelledError("who?"), GeneratorExit(), BaseException("odd")])
async def test_what_is_no_exception_comes_out_as_one(way: str, error: BaseException) -> None:
    with pytest.raises(StrayError, match=f"stray {type(error).__name__}") as raised:
        await WAYS[way](fail(error))
    assert isinstance(raised.value.__cause__, type(error))
    assert cancelling() == 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_to_end_the_process_ends_it(way: str, error: type[BaseException]) -> None:
    with pytest.raises(error):
        asyncio.run(WAYS[way](fail(error())))


@pytest.mark.parametrize("way", WAYS)
async def test_a_cancellation_of_the_caller_is_one_of_its_parts(way: str) -> None:
    part = Endless()
    caller = asyncio.create_task(WAYS[way](part.run()))
    await quiet()
    await ended(caller)
    assert (caller.cancelled(), part.has_ended) == (True, True)


async def test_the_first_to_end_ends_the_others() -> None:
    other = Endless()
    await first(other.run(), answer(1))
    assert other.has_ended


async def test_what_takes_too_long_is_ended_before_the_error() -> None:
    part = Endless()
    with pytest.raises(TimeoutError, match="it took longer"):
        await within(0.001, part.run())
    assert part.has_ended
    assert await within(9, answer(7)) == 7
    assert cancelling() == 0


async def test_waiting_ends_with_the_event_or_the_time() -> None:
    event = asyncio.Event()
    await wait_for(event, 0.001)
    assert not event.is_set()
    event.set()
    await wait_for(event, None)


async def test_a_part_that_leaves_a_cancellation_behind_keeps_it_for_itself() -> None:
    await contained(old_python.leave_a_cancellation_behind())
    assert cancelling() == 0


async def test_a_cancellation_that_others_left_behind_harms_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    old_python.install(monkeypatch)

    async def story() -> str:
        await old_python.leave_a_cancellation_behind()
        with pytest.raises(asyncio.CancelledError):  # a trait of 3.11.2: it should be a TimeoutError
            async with asyncio.timeout(0.001):
                await asyncio.Event().wait()
        await wait_for(asyncio.Event(), 0.001)
        with pytest.raises(TimeoutError):
            await within(0.001, asyncio.Event().wait())
        return "unharmed"

    assert await asyncio.create_task(story()) == "unharmed"
