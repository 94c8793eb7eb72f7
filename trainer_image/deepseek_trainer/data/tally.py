"""From records to packed rows, with a count of what became of them."""

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.data.shards import RowArray, SplitCounts
from deepseek_trainer.language.packing import Document, again, best_fit, packed_row, row_dtype, split_rows
from deepseek_trainer.language.records import Record
from deepseek_trainer.language.tokenizer import documents, id_limit, pad_id

log = logging.getLogger(__name__)

WINDOW: Final = 1 << 16  # Instruction records packed together: bounds the memory
REPORT_EVERY_S: Final = 10.0
SHOWN: Final = 10  # reasons why a record was skipped


@dataclass(slots=True)
class Tally:
    """Packs one split and counts as it goes; `counts()` is right once all rows have been taken."""

    split: str
    spec: DataSpec
    tokenizer: Any
    fills_row: bool = False  # by its records again, where all of them are shorter than a row
    _records: int = 0
    _bytes: int = 0  # of text [UTF-8 bytes]
    _tokens: int = 0
    _learned: int = 0
    _rows: int = 0
    _cut: int = 0
    _dropped: int = 0
    _skipped: int = 0
    _start: float = field(default_factory=time.monotonic)
    _reported: float = field(default_factory=time.monotonic)

    def rows(self, records: Iterable[Record]) -> Iterator[RowArray]:
        """Rows of `packing.row_dtype`, each of shape (1,)."""
        dtype = row_dtype(self.spec.sequence_length, id_limit(self.tokenizer))
        pad = pad_id(self.tokenizer)
        for parts in self._packed(self._counted(records)):
            self._rows += 1
            yield packed_row(parts, dtype, pad)

    def counts(self) -> SplitCounts:
        return SplitCounts(
            records=self._records,
            tokens=self._tokens,
            learned_tokens=self._learned,
            rows=self._rows,
            cut=self._cut,
            dropped=self._dropped,
            skipped=self._skipped,
        )

    def skip(self, error: DataError) -> None:
        """Counts a bad record, and says what is wrong with the first few."""
        self._skipped += 1
        if self._skipped <= SHOWN:
            log.warning("skipped %s", error)

    def report(self) -> None:
        """One log line: how far, how fast [MB of text per second], and what was lost."""
        elapsed = time.monotonic() - self._start
        log.info(
            "prepared %s: records=%d tokens=%d rows=%d cut=%d dropped=%d skipped=%d in %.1f s (%.1f MB/s)",
            self.split, self._records, self._tokens, self._rows, self._cut, self._dropped, self._skipped,
            elapsed, self._bytes / 1e6 / max(elapsed, 1e-9),
        )  # fmt: skip
        self._reported = time.monotonic()

    def _counted(self, records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            self._records += 1
            self._bytes += record.size_bytes()
            if time.monotonic() - self._reported >= REPORT_EVERY_S:
                self.report()
            yield record

    def _packed(self, records: Iterator[Record]) -> Iterator[list[Document]]:
        """The documents of one row after the other."""
        if self.spec.format is DataFormat.PREFERENCE:
            return self._pairs(documents(self.tokenizer, (side for record in records for side in record.sides())))
        fitted = self._fitted(documents(self.tokenizer, records))
        if self.fills_row:
            fitted = again(fitted, self.spec.sequence_length)
        is_text = self.spec.format is DataFormat.TEXT
        return split_rows(fitted, self.spec.sequence_length) if is_text else self._best_fit(fitted)

    def _pairs(self, sides: Iterator[Document]) -> Iterator[list[Document]]:
        """A row for each pair: chosen, then rejected.  Parts of answers do not compare: a longer pair is dropped."""
        for chosen, rejected in zip(sides, sides, strict=True):
            if len(chosen) + len(rejected) > self.spec.sequence_length:
                self._dropped += 1
                continue
            answers = [chosen.last_answer(), rejected.last_answer()]
            self._tokens += sum(map(len, answers))
            self._learned += sum(answer.num_targets for answer in answers)
            yield answers

    def _fitted(self, whole: Iterable[Document]) -> Iterator[Document]:
        """Text as it is; Instruction documents cut to a row, without those that then teach nothing."""
        for document in whole:
            fits = document
            if self.spec.format is DataFormat.INSTRUCTION:
                fits = document.part(0, self.spec.sequence_length)
                self._cut += len(fits) < len(document)
            if fits.num_targets:
                self._tokens += len(fits)
                self._learned += fits.num_targets
                yield fits
            else:
                self._dropped += 1

    def _best_fit(self, fitted: Iterator[Document]) -> Iterator[list[Document]]:
        while window := list(islice(fitted, WINDOW)):
            for row in best_fit([len(document) for document in window], self.spec.sequence_length):
                yield [window[i] for i in row]
