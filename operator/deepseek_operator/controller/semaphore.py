"""A semaphore that lets the most urgent in first."""

import asyncio
import heapq
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count


class DeadlineSemaphore:
    """Waiters enter in the order of their deadlines, and in the order of their arrival where deadlines are equal."""

    def __init__(self, number: int) -> None:
        self._free = number
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._tickets = count()

    @asynccontextmanager
    async def held(self, deadline: float) -> AsyncIterator[None]:
        """Hold one of its places."""
        if self._free:
            self._free -= 1
        else:
            await self._turn(deadline)
        try:
            yield
        finally:
            self._pass_on()

    async def _turn(self, deadline: float) -> None:
        turn = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (deadline, next(self._tickets), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # it was cancelled after its turn had come
            raise

    def _pass_on(self) -> None:
        while self._waiting:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
