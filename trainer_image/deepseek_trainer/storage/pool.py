"""Threads for work that lets go of the interpreter's lock, such as sealing, and its buffers.

Shared by all files of a process.
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
    """A forked child, which has no threads, gets its own."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, "seal")

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        return self._threads.submit(work, *arguments)


POOL: Final = _Pool()


def on_threads(work: Callable[[Item], T], items: Iterable[Item]) -> list[T]:
    """What `work` gives for each of `items`, in their order; when this returns or raises, no thread is at it."""
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


_SPARE: Final[list[memoryview]] = []  # as many as were ever in use at once


def borrowed(size: int) -> memoryview:
    """A buffer, used before if possible: the first touch of fresh memory takes longer than sealing it."""
    with suppress(IndexError):
        if len(spare := _SPARE.pop()) == size:
            return spare
    return memoryview(bytearray(size))


def give_back(buffer: memoryview) -> None:
    """What was borrowed, when nobody uses it any more."""
    _SPARE.append(buffer)
