"""What becomes of the records of one source while rows are made of them."""

import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import MAX_SHOWN, one_line
from deepseek_trainer.data.reading import R
from deepseek_trainer.data.shards import SplitCounts

log = logging.getLogger(__name__)

REPORT_EVERY_S: Final = 10.0
SHOWN: Final = 10  # reasons why a record was skipped
MAX_UNUSED: Final = 100  # names of fields that were not used; objects whose keys are data have any number of them
OTHERS: Final = "(others)"


@dataclass(slots=True)
class Tally:
    """Counts records as they go by.  `counts()` is final once all rows have been made.

    `amounts` is what the task counts besides, by name, such as tokens.
    """

    place: str  # what messages call the source
    amounts: Counter[str]
    rows: int = 0
    dropped: int = 0
    unused: Counter[str] = field(default_factory=Counter)  # records by the fields of which nothing was made
    _records: int = 0
    _bytes: int = 0  # of content
    _skipped: int = 0
    _others: int = 0  # records with fields that have no count of their own
    _start: float = field(default_factory=time.monotonic)
    _reported: float = field(default_factory=time.monotonic)

    def counted(self, records: Iterable[R]) -> Iterator[R]:
        """The same records.  Logs every few seconds how far it is."""
        for record in records:
            self._records += 1
            self._bytes += record.size_bytes()
            self._note(record.unused)
            if time.monotonic() - self._reported >= REPORT_EVERY_S:
                self.report()
            yield record

    def _note(self, unused: Iterable[str]) -> None:
        """Count the unused fields of a record.  There could be any number of names: most of them share a count."""
        has_others = False
        for name in map(_brief, unused):
            if name in self.unused or len(self.unused) < MAX_UNUSED:
                self.unused[name] += 1
            else:
                has_others = True
        self._others += has_others

    def skip(self, error: DataError) -> None:
        """Count a bad record, and log what is wrong with the first few."""
        self._skipped += 1
        if self._skipped <= SHOWN:
            log.warning("skipped %s", error)

    def counts(self) -> SplitCounts:
        amounts, unused = dict(self.amounts), dict(self.unused) | ({OTHERS: self._others} if self._others else {})
        return SplitCounts(self._records, self.rows, self.dropped, self._skipped, amounts, unused)

    def report(self) -> None:
        """Write one log line: how far it is, how fast [MB of content per second], and what was lost."""
        elapsed = time.monotonic() - self._start
        numbers = " ".join(f"{name}={number}" for name, number in self.counts().to_json().items())
        speed = self._bytes / 1e6 / max(elapsed, 1e-9)
        log.info("prepared %s: %s in %.1f s (%.1f MB/s)", self.place, numbers, elapsed, speed)
        self._reported = time.monotonic()


def _brief(name: str) -> str:
    return one_line(name, MAX_SHOWN)
