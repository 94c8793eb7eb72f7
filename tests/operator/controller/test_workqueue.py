"""Keyed passes, in time that the test moves by hand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from itertools import pairwise

import pytest

from deepseek_operator.controller.workqueue import FIRST_SETTLE_S, PATIENCE_S, SETTLE_S, WorkQueue, alarm, backoff
from deepseek_operator.objects.observed import OwnerKey
from support.fakes.clock import FakeTime, quiet

A, B = OwnerKey("ml", "a"), OwnerKey("ml", "b")
Answers = Callable[[OwnerKey], float | None]


class Passes:
    """A queue that records its passes; `answer` says what each returns or raises."""

    def __init__(self, *, concurrency: int = 8) -> None:
        self.time = FakeTime()
        self.seen: list[tuple[float, OwnerKey]] = []
        self.running = self.most_running = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.answer: Answers = lambda _: None
        self.queue = WorkQueue(
            self._work, concurrency=concurrency, clock=self.time.clock, wait=self.time.wait, luck=lambda: 1.0
        )

    async def _work(self, key: OwnerKey) -> float | None:
        self.seen.append((self.time.now - 1000, key))
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await self.gate.wait()
        self.running -= 1
        return self.answer(key)

    def times(self, key: OwnerKey = A) -> list[float]:
        return [time for time, seen in self.seen if seen == key]


@pytest.fixture
async def passes() -> AsyncIterator[Passes]:
    passes = Passes()
    yield passes
    await passes.queue.close()


async def test_an_event_makes_one_pass_and_leaves_nothing_behind(passes: Passes) -> None:
    passes.queue.add(A)
    await quiet()
    assert passes.times() == [0]
    assert len(passes.queue) == 0


async def test_events_during_a_pass_cost_one_more_pass(passes: Passes) -> None:
    passes.gate.clear()
    for _ in range(100):
        passes.queue.add(A)
        await quiet()
    passes.gate.set()
    await passes.time.advance(10)
    assert len(passes.times()) == 2


async def test_events_gather_after_a_pass(passes: Passes) -> None:
    passes.answer = lambda _: 100.0
    for _ in range(9):
        passes.queue.add(A)
        await passes.time.advance(0.25)
    assert passes.times() == [0, FIRST_SETTLE_S, FIRST_SETTLE_S + SETTLE_S]


async def test_events_gather_after_a_pass_that_was_to_be_the_last(passes: Passes) -> None:
    for _ in range(40):
        passes.queue.add(A)
        await passes.time.advance(0.25)
    assert len(passes.times()) == 11, "one a second, however many events come in ten"


@pytest.mark.parametrize(("others", "second"), [(2, 0.5 + FIRST_SETTLE_S), (50, PATIENCE_S)])
async def test_a_second_look_waits_while_other_keys_come_but_not_for_ever(
    passes: Passes, others: int, second: float
) -> None:
    passes.answer = lambda _: 100.0
    for number in range(51):
        passes.queue.add(A)
        if 0 < number <= others:
            passes.queue.add(OwnerKey("ml", f"job-{number}"))
        await passes.time.advance(0.25)
    assert passes.times()[:2] == [0, second]


async def test_a_key_is_never_in_two_passes_and_keys_do_not_wait_for_each_other(passes: Passes) -> None:
    passes.gate.clear()
    for key in (A, B, A, B):
        passes.queue.add(key)
        await quiet()
    assert [key for _, key in passes.seen] == [A, B]
    assert passes.most_running == 2


async def test_no_more_passes_than_slots_run_at_once() -> None:
    passes = Passes(concurrency=2)
    passes.gate.clear()
    for number in range(5):
        passes.queue.add(OwnerKey("ml", f"job-{number}"))
    await quiet()
    assert passes.running == 2
    passes.gate.set()
    await quiet()
    assert (len(passes.seen), passes.most_running) == (5, 2)


async def test_a_job_that_has_just_come_goes_before_the_others_for_a_while() -> None:
    passes = Passes(concurrency=1)
    passes.answer = lambda key: None if key == B else 1.0
    passes.queue.add(A)
    await quiet()
    passes.gate.clear()
    passes.queue.add(OwnerKey("ml", "busy"))
    await passes.time.advance(FIRST_SETTLE_S + 1)  # the second pass over A is due, and waits
    passes.queue.add(B)
    await passes.time.advance(PATIENCE_S)
    passes.queue.add(OwnerKey("ml", "late"))
    passes.gate.set()
    await quiet()
    assert [key.name for _, key in passes.seen] == ["a", "busy", "b", "a", "late"]
    await passes.queue.close()


async def test_a_pass_comes_again_when_it_asked_to(passes: Passes) -> None:
    answers = iter([15.0, 0.0, None])
    passes.answer = lambda _: next(answers)
    passes.queue.add(A)
    await passes.time.advance(100)
    assert passes.times() == [0, 15 + FIRST_SETTLE_S, 15 + FIRST_SETTLE_S]


async def test_an_event_comes_before_the_asked_time(passes: Passes) -> None:
    passes.answer = lambda _: 300.0
    passes.queue.add(A)
    await passes.time.advance(5)
    passes.queue.add(A)
    await passes.time.advance(5)
    assert passes.times() == [0, 5]


async def test_failures_back_off_and_a_success_forgets_them(passes: Passes) -> None:
    failures = iter([True] * 9 + [False, True, False])

    def answer(_: OwnerKey) -> float | None:
        if next(failures):
            raise ConnectionError("API server is away")
        return 1000.0

    passes.answer = answer
    passes.queue.add(A)
    await passes.time.advance(400)
    gaps = [round(later - earlier - SETTLE_S) for earlier, later in pairwise(passes.times())]
    assert gaps == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    passes.queue.add(A)
    await passes.time.advance(2)
    assert passes.times()[11] - passes.times()[10] == 1 + SETTLE_S


async def test_a_key_that_always_fails_does_not_hold_up_the_others(passes: Passes) -> None:
    def answer(key: OwnerKey) -> float | None:
        if key == A:
            raise ValueError("poison")
        return None

    passes.answer = answer
    for key in (A, B):
        passes.queue.add(key)
    await quiet()
    assert passes.times(B) == [0]


async def test_the_age_of_the_oldest_due_pass_is_known(passes: Passes) -> None:
    assert passes.queue.oldest_s() == 0
    passes.gate.clear()
    passes.queue.add(A)
    await passes.time.advance(7)
    passes.queue.add(B)
    await passes.time.advance(3)
    assert passes.queue.oldest_s() == 10


async def test_closing_ends_every_task(passes: Passes) -> None:
    passes.answer = lambda _: 1000.0
    passes.queue.add(A)
    await quiet()
    await passes.queue.close()
    assert len(passes.queue) == 0


async def test_an_alarm_goes_off_in_time_or_is_set_off() -> None:
    events = [asyncio.Event(), asyncio.Event()]
    await alarm(events[0], 0.001)
    asyncio.get_running_loop().call_soon(events[1].set)
    await alarm(events[1], 1000)
    await alarm(events[1], None)


def test_backoff_is_spread_over_half_of_it() -> None:
    assert [backoff(1, luck) for luck in (0.0, 0.5)] == [0.5, 0.75]
    assert backoff(1000, 1.0) == 60
