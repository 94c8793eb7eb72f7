"""Errors that end pass after pass over an owner, told once where people look: in the status, and by an event."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from deepseek_operator.objects.observed import OwnerKey
from deepseek_trainer.contract.foreign import one_line

log = logging.getLogger(__name__)

REPORTED_AFTER: Final = 3  # passes that failed in a row: one or two come with every update of an API server
MAX_ERROR: Final = 1024  # [characters]

Report = Callable[[OwnerKey, str], Awaitable[None]]


class Failures:
    """Counts the passes over each owner that failed in a row.  It keeps nothing about owners whose passes succeed."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._counts: dict[OwnerKey, int] = {}
        self._reported: set[OwnerKey] = set()

    def ended(self, key: OwnerKey) -> None:
        """A pass over `key` did not fail."""
        self._counts.pop(key, None)
        self._reported.discard(key)

    async def failed(self, key: OwnerKey, error: Exception) -> None:
        """A pass over `key` failed.  While the API server is away nothing can be told, so it is tried once more."""
        count = self._counts[key] = self._counts.get(key, 0) + 1
        if count < REPORTED_AFTER or key in self._reported:
            return
        try:
            await self._report(key, _words(error))
            self._reported.add(key)
        except Exception as another:
            log.debug("the failures over %s could not be told", key, exc_info=another)


def _words(error: Exception) -> str:
    """All that an error says, on one line."""
    return one_line(" ".join([f"{type(error).__name__}:", *str(error).split()]), MAX_ERROR)
