"""Whatever ends a pass, its key comes back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count

import pytest

from deepseek_operator.concurrency import gathered, within
from deepseek_operator.controller import metrics
from deepseek_operator.controller.workqueue import WorkQueue, alarm
from deepseek_operator.objects.observed import OwnerKey
from support.fakes import old_python
from support.fakes.clock import FakeTime, quiet

A, B = OwnerKey("ml", "a"), OwnerKey("ml", "b")


async def refused() -> None:
    await asyncio.sleep(0)
    raise ConnectionError("429: slow down")


async def a_list_of_several_that_is_refused() -> None:
    await gathered(refused(), asyncio.sleep(9))


async def a_task_group_of_which_a_member_failed() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(refused())
        group.create_task(asyncio.sleep(9))


async def a_cancellation_that_is_left_behind() -> None:
    await old_python.leave_a_cancellation_behind()
    await refused()


async def a_time_out_under_a_cancellation_that_is_left_behind() -> None:
    await old_python.leave_a_cancellation_behind()
    async with asyncio.timeout(0.001):
        await asyncio.Event().wait()


async def a_request_without_an_answer() -> None:
    await within(0.001, asyncio.Event().wait())


async def a_task_that_cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def a_cancellation_that_nobody_asked_for() -> None:
    raise asyncio.CancelledError


async def an_error_that_is_no_exception() -> None:
    raise BaseException("odd")


async def a_generator_that_is_closed() -> None:
    raise GeneratorExit


ENDS = [
    refused,
    a_list_of_several_that_is_refused,
    a_task_group_of_which_a_member_failed,
    a_cancellation_that_is_left_behind,
    a_time_out_under_a_cancellation_that_is_left_behind,
    a_request_without_an_answer,
    a_task_that_cancels_itself,
    a_cancellation_that_nobody_asked_for,
    an_error_that_is_no_exception,
    a_generator_that_is_closed,
]


async def quick(event: asyncio.Event, timeout_s: float | None) -> None:
    await alarm(event, timeout_s and timeout_s / 1000)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
async def test_a_key_comes_back_after_each_end_of_a_pass(
    end: Callable[[], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    old_python.install(monkeypatch)
    numbers, done, failed = count(1), asyncio.Event(), metrics.PASSES.labels("failed")._sum

    async def work(_: OwnerKey) -> float | None:
        if next(numbers) < 4:
            await end()
        done.set()
        return None

    queue, before = WorkQueue(work, wait=quick), failed.get()
    queue.add(A)
    await within(5, done.wait())
    await quiet()
    assert len(queue) == 0, "the work over the key is done"
    assert failed.get() > before


class Stopped:
    """A queue of passes that run until they are cancelled, in time that the test moves by hand."""

    def __init__(self) -> None:
        self.time, self.begun, self.ended = FakeTime(), list[OwnerKey](), list[OwnerKey]()
        self.queue = WorkQueue(self._work, clock=self.time.clock, wait=self.time.wait)

    async def _work(self, key: OwnerKey) -> float | None:
        self.begun.append(key)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.append(key)
        return None


@pytest.fixture
async def stopped() -> AsyncIterator[Stopped]:
    stopped = Stopped()
    yield stopped
    await stopped.queue.close()


async def test_closing_ends_passes_and_nothing_comes_back(stopped: Stopped) -> None:
    for key in (A, B):
        stopped.queue.add(key)
    await quiet()
    await stopped.queue.close()
    assert stopped.ended == [A, B]
    stopped.queue.revive()
    await stopped.time.advance(1000)
    assert (stopped.begun, len(stopped.queue), stopped.queue.oldest_s()) == ([A, B], 0, 0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_what_is_to_end_the_process_is_not_taken_for_a_failed_pass(error: type[BaseException]) -> None:
    passes = []

    async def work(key: OwnerKey) -> float | None:
        passes.append(key)
        raise error

    async def story() -> None:
        WorkQueue(work, wait=quick).add(A)
        await asyncio.sleep(5)

    with pytest.raises(error):
        asyncio.run(story())
    assert passes == [A]


async def end_the_passes_over(key: OwnerKey) -> None:
    """As whoever cancels all tasks of a loop does."""
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == f"passes over {key}")
    task.cancel()
    await quiet()


async def test_a_key_that_nobody_works_on_is_known_and_put_back(
    stopped: Stopped, caplog: pytest.LogCaptureFixture
) -> None:
    before = metrics.REVIVED._value.get()
    stopped.queue.add(A)
    await stopped.time.advance(9)
    await end_the_passes_over(A)
    await stopped.time.advance(400)
    assert stopped.queue.oldest_s() == 400
    stopped.queue.revive()
    await quiet()
    assert stopped.begun == [A, A]
    assert metrics.REVIVED._value.get() - before == 1
    assert "nobody worked on ml/a any more" in caplog.text
    stopped.queue.revive()
    assert metrics.REVIVED._value.get() - before == 1, "it is worked on again"


async def test_an_event_puts_back_a_key_that_nobody_works_on(stopped: Stopped) -> None:
    stopped.queue.add(A)
    await quiet()
    await end_the_passes_over(A)
    stopped.queue.add(A)
    await quiet()
    assert stopped.begun == [A, A]
