"""Questions that many passes ask at the same time, asked once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
    """One question per name at a time; who asks meanwhile shares the next one: no answer is older than its asker."""

    def __init__(self, question: Callable[[str], Awaitable[Answer]]) -> None:
        self._question = question
        self._locks: dict[str, asyncio.Lock] = {}
        self._next: dict[str, asyncio.Task[Answer]] = {}

    async def ask(self, name: str) -> Answer:
        if name not in self._next:
            self._next[name] = asyncio.create_task(self._ask(name))
        return await asyncio.shield(self._next[name])  # others wait for it, too

    async def _ask(self, name: str) -> Answer:
        async with self._locks.setdefault(name, asyncio.Lock()):
            del self._next[name]
            return await self._question(name)
