"""Packs records into rows."""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Final

from deepseek_trainer.contract.data import DataFormat, DataSpec, LongRecords, MultiTurn
from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.shards import SplitCounts
from deepseek_trainer.data.tally import Tally
from deepseek_trainer.tasks.language.packing import Document, again, best_fit, packed_row, rounds, row_dtype, split_rows
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import documents, documents_by_record, id_limit, pad_id

WINDOW: Final = 1 << 16  # Instruction records packed together: bounds the memory


def records_of_row(counts: SplitCounts, length: int) -> float:
    """How many records of a class a row of `length` tokens holds, on average; `packing.again` may repeat them."""
    return (counts.records - counts.dropped) * rounds(counts.amounts["tokens"], length) / counts.rows


def losses(counts: SplitCounts, spec: DataSpec) -> Iterator[tuple[str, str]]:
    """Which records of a split are not learned, or only in part: how many and why, and the way out."""
    row = f"data.sequenceLength={spec.sequence_length}"
    is_pairs = spec.format is DataFormat.PREFERENCE
    what, each = ("pairs", "each prompt with both answers") if is_pairs else ("records", "each")
    cuts = spec.long is LongRecords.CUT
    unlearned = counts.amounts.get("unlearned", 0)
    too_long = counts.dropped - unlearned
    cut = counts.amounts.get("cut", 0)
    if too_long:
        why = f"each prompt alone fills {row}" if cuts else f"{each} is longer than {row}"
        other = "set data.longRecords" if not is_pairs and not cuts else "shorten them"
        yield f"{too_long} of {counts.records} {what} were dropped: {why}", f"raise it, or {other}"
    if unlearned:
        yield (
            f"{unlearned} of {counts.records} {what} were dropped: they teach nothing",
            "give each an answer of weight",
        )
    if cut:
        where = "lost their end at" if cuts else "lost answers that end beyond"
        other = "set data.longRecords: Drop" if cuts else "shorten them"
        yield f"{cut} of {counts.records} {what} {where} {row}", f"raise it, or {other}"


def documents_of(spec: DataSpec, tokenizer: Any, records: Iterable[Record]) -> Iterator[list[Document]]:
    """What each record becomes, however long it is: of a pair the chosen answer, then the rejected one."""
    if spec.format is not DataFormat.PREFERENCE:
        return documents_by_record(tokenizer, records, spec.multi_turn)
    sides = documents(tokenizer, (side for record in records for side in record.sides()), MultiTurn.LAST_ANSWER)
    return ([*pair] for pair in zip(sides, sides, strict=True))


class RowMaker:
    """Packs the records of one source or class."""

    def __init__(self, place: str, spec: DataSpec, tokenizer: Any, *, fills_row: bool = False) -> None:
        """`fills_row`: repeat the records if all of them together are shorter than a row.

        Of the amounts, `cut` are records of which a part was lost and the rest is learned, `split` those that go on in
        another row, and `unlearned` those dropped since they teach nothing, however long a row is.
        """
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
        whole = documents_of(self.spec, self.tokenizer, records)
        if self.spec.format is DataFormat.PREFERENCE:
            return self._pairs(whole)
        fitted = self._fitted(whole)
        if self.fills_row:
            fitted = again(fitted, self.spec.sequence_length)
        splits = self.spec.long is LongRecords.SPLIT
        return split_rows(fitted, self.spec.sequence_length) if splits else self._best_fit(fitted)

    def _pairs(self, pairs: Iterable[list[Document]]) -> Iterator[list[Document]]:
        """A row for each pair: chosen, then rejected.  Parts of answers do not compare, so a longer pair is dropped."""
        for pair in pairs:
            if sum(map(len, pair)) > self.spec.sequence_length:
                self.tally.dropped += 1
                continue
            self.tally.amounts["tokens"] += sum(map(len, pair))
            self.tally.amounts["learned_tokens"] += sum(side.num_targets for side in pair)
            yield pair

    def _fitted(self, by_record: Iterable[list[Document]]) -> Iterator[Document]:
        """What of each record goes into rows, and teaches something."""
        for whole in by_record:
            fits = [fit for document in whole if (fit := self._fit(document)).num_targets]
            self._count(whole, fits)
            yield from fits

    def _fit(self, document: Document) -> Document:
        """As much of it as `longRecords` lets through."""
        if len(document) <= self.spec.sequence_length or self.spec.long is LongRecords.SPLIT:
            return document
        return document.part(0, self.spec.sequence_length if self.spec.long is LongRecords.CUT else 0)

    def _count(self, whole: list[Document], fits: list[Document]) -> None:
        amounts = self.tally.amounts
        amounts["tokens"] += sum(map(len, fits))
        amounts["learned_tokens"] += sum(fit.num_targets for fit in fits)
        is_long = any(len(document) > self.spec.sequence_length for document in whole)
        if not fits:
            self.tally.dropped += 1
            if not is_long:
                amounts["unlearned"] += 1
        if is_long and self.spec.long is LongRecords.SPLIT:
            amounts["split"] += 1
        elif is_long and fits:
            amounts["cut"] += 1

    def _best_fit(self, fitted: Iterator[Document]) -> Iterator[list[Document]]:
        while window := list(islice(fitted, WINDOW)):
            for row in best_fit([len(document) for document in window], self.spec.sequence_length):
                yield [window[i] for i in row]
