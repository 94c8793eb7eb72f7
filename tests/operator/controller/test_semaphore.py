"""How many at a time, and who goes first."""

import asyncio

from deepseek_operator.controller.semaphore import DeadlineSemaphore
from support.fakes.clock import quiet


class Guests:
    """Tasks that hold a place until they are asked to leave; `inside` lists who holds one now, in order."""

    def __init__(self, number: int) -> None:
        self.semaphore, self.inside = DeadlineSemaphore(number), list[str]()
        self.leave: dict[str, asyncio.Event] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str, deadline: float = 0) -> None:
        self.leave[name] = asyncio.Event()
        self.tasks[name] = asyncio.create_task(self._visit(name, deadline))
        await quiet()

    async def go(self, name: str) -> None:
        self.leave[name].set()
        await quiet()

    async def _visit(self, name: str, deadline: float) -> None:
        async with self.semaphore.held(deadline):
            self.inside.append(name)
            await self.leave[name].wait()
            self.inside.remove(name)


async def test_no_more_than_there_are_places_are_inside() -> None:
    guests = Guests(2)
    for name in "abc":
        await guests.come(name)
    assert guests.inside == ["a", "b"]
    await guests.go("a")
    assert guests.inside == ["b", "c"]


async def test_the_earliest_deadline_goes_first_and_equal_ones_as_they_came() -> None:
    guests = Guests(1)
    await guests.come("first")
    for name, deadline in (("late", 9), ("soon", 5), ("soon-too", 5)):
        await guests.come(name, deadline)
    order = []
    for _ in range(4):
        order += guests.inside
        await guests.go(guests.inside[0])
    assert order == ["first", "soon", "soon-too", "late"]


async def test_who_is_cancelled_takes_no_place_along() -> None:
    guests = Guests(1)
    await guests.come("inside")
    await guests.come("waits", 1)
    await guests.come("waits-too", 2)
    guests.leave["inside"].set()
    guests.tasks["waits"].cancel()
    await quiet()
    assert guests.inside == ["waits-too"]


async def test_who_is_cancelled_in_the_moment_of_its_turn_passes_it_on() -> None:
    guests = Guests(1)
    async with guests.semaphore.held(0):
        await guests.come("waits", 1)
        await guests.come("waits-too", 2)
    guests.tasks["waits"].cancel()
    await quiet()
    assert guests.inside == ["waits-too"]
