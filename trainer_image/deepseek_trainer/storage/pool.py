"""Threads for work that releases the interpreter's lock, such as sealing, and buffers for it.

All files of a process share them.
"""

import os
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any, Final, TypeVar

T = TypeVar("T")
Item = TypeVar("Item")

THREADS: Final = min(4, len(os.sched_getaffinity(0)))


class _Pool:
    """The threads.  A forked child, which inherits none, gets threads of its own."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "seal")

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._threads.submit(work, *arguments)


POOL: Final = _Pool()


def on_threads(work: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """The results of `work` for each of `items`, in order.  No thread is still at work when this returns or raises."""
    if THREADS == 1:
        return [work(item) for item in items]
    running = [POOL.submit(work, item) for item in items]
    wait(running, return_when=FIRST_EXCEPTION)
    for each in running:
        each.cancel()
    wait(running)
    failed = next((error for each in running if not each.cancelled() and (error := each.exception())), None)
    if failed:
        raise failed
    return [each.result() for each in running]


_SPARE: Final[list[memoryview]] = []  # grows to as many as were in use at once


def borrowed(size: int) -> memoryview:
    """A buffer, if possible one that was used before: touching fresh memory first takes longer than sealing it."""
    with suppress(IndexError):
        if len(spare := _SPARE.pop()) == size:
            return spare
    return memoryview(bytearray(size))


def give_back(buffer: memoryview) -> None:
    """Return a borrowed buffer that nobody uses any more."""
    _SPARE.append(buffer)
