"""The asyncio of Python 3.11.2, which Debian 12 has, in its two traits that end tasks which nobody cancelled."""

import asyncio
import contextlib
from typing import Any

import pytest


async def leave_a_cancellation_behind() -> None:
    """Do to the present task what a TaskGroup does of which a member failed."""
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    assert task.cancelling()


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give asyncio.timeout the end that it has in 3.11.2: a time-out raises TimeoutError only in an untouched task."""

    async def leave(self: Any, exc_type: Any, *_: Any) -> None:
        if self._timeout_handler is not None:
            self._timeout_handler.cancel()
            self._timeout_handler = None
        if self._state is asyncio.timeouts._State.EXPIRING:
            self._state = asyncio.timeouts._State.EXPIRED
            if self._task.uncancel() == 0 and exc_type is asyncio.CancelledError:
                raise TimeoutError
        elif self._state is asyncio.timeouts._State.ENTERED:
            self._state = asyncio.timeouts._State.EXITED

    monkeypatch.setattr(asyncio.Timeout, "__aexit__", leave)
