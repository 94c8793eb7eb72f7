"""Packs records into rows."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.shards import SplitCounts
from deepseek_trainer.data.tally import Tally
from deepseek_trainer.tasks.language.packing import Document, again, best_fit, packed_row, rounds, row_dtype, split_rows
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import documents, id_limit, pad_id

WINDOW: Final = 1 << 16  # Instruction records packed together: bounds the memory


def records_of_row(counts: SplitCounts, length: int) -> float:
    """How many records of a class a row of `length` tokens holds, on average; `packing.again` may repeat them."""
    return (counts.records - counts.dropped) * rounds(counts.amounts["tokens"], length) / counts.rows


class RowMaker:
    """Packs the records of one source or class."""

    def __init__(self, place: str, spec: DataSpec, tokenizer: Any, *, fills_row: bool = False) -> None:
        """`fills_row`: repeat the records if all of them together are shorter than a row."""
        self.spec, self.tokenizer, self.fills_row = spec, tokenizer, fills_row
        self.tally = Tally(place, Counter(tokens=0, learned_tokens=0, cut=0))

    def rows(self, records: Iterable[Record]) -> Iterator[RowArray]:
        """Rows of `packing.row_dtype`, each of shape (1,)."""
        dtype = row_dtype(self.spec.sequence_length, id_limit(self.tokenizer))
        pad = pad_id(self.tokenizer)
        for parts in self._packed(self.tally.counted(records)):
            self.tally.rows += 1
            yield packed_row(parts, dtype, pad)

    def _packed(self, records: Iterator[Record]) -> Iterator[list[Document]]:
        """The documents of each row, one row after the other."""
        if self.spec.format is DataFormat.PREFERENCE:
            return self._pairs(documents(self.tokenizer, (side for record in records for side in record.sides())))
        fitted = self._fitted(documents(self.tokenizer, records))
        if self.fills_row:
            fitted = again(fitted, self.spec.sequence_length)
        is_text = self.spec.format is DataFormat.TEXT
        return split_rows(fitted, self.spec.sequence_length) if is_text else self._best_fit(fitted)

    def _pairs(self, sides: Iterator[Document]) -> Iterator[list[Document]]:
        """A row for each pair: chosen, then rejected.  Parts of answers do not compare, so a longer pair is dropped."""
        for chosen, rejected in zip(sides, sides, strict=True):
            if len(chosen) + len(rejected) > self.spec.sequence_length:
                self.tally.dropped += 1
                continue
            answers = [chosen.last_answer(), rejected.last_answer()]
            self.tally.amounts["tokens"] += sum(map(len, answers))
            self.tally.amounts["learned_tokens"] += sum(answer.num_targets for answer in answers)
            yield answers

    def _fitted(self, whole: Iterable[Document]) -> Iterator[Document]:
        """Text as it is, and Instruction cut to a row; without documents that then teach nothing."""
        for document in whole:
            fits = document
            if self.spec.format is DataFormat.INSTRUCTION:
                fits = document.part(0, self.spec.sequence_length)
                self.tally.amounts["cut"] += len(fits) < len(document)
            if fits.num_targets:
                self.tally.amounts["tokens"] += len(fits)
                self.tally.amounts["learned_tokens"] += fits.num_targets
                yield fits
            else:
                self.tally.dropped += 1

    def _best_fit(self, fitted: Iterator[Document]) -> Iterator[list[Document]]:
        while window := list(islice(fitted, WINDOW)):
            for row in best_fit([len(document) for document in window], self.spec.sequence_length):
                yield [window[i] for i in row]
