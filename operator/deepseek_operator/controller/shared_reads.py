"""Reads that many passes want at the same time, done once for all of them."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")


class Shared(Generic[Answer]):
    """Asks one question per name at a time.

    Whoever asks meanwhile waits for the next answer and shares it, so that no answer is older than its question.
    """

    def __init__(self, question: Callable[[str], Awaitable[Answer]]) -> None:
        self._question = question
        self._locks: dict[str, asyncio.Lock] = {}
        self._next: dict[str, asyncio.Task[Answer]] = {}

    async def ask(self, name: str) -> Answer:
        if name not in self._next or self._next[name].done():  # one that was cancelled while it waited is no answer
            self._next[name] = asyncio.create_task(self._ask(name))
        return await asyncio.shield(self._next[name])  # others wait for the same task

    async def _ask(self, name: str) -> Answer:
        async with self._locks.setdefault(name, asyncio.Lock()):
            del self._next[name]
            return await self._question(name)
