"""Documents, generated or real, and the rows that our packing makes of them.  The same seed, the same tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import bare_machine  # noqa: F401 first
import numpy as np

from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.cursor import Cursor, Indices
from deepseek_trainer.data.shards import RowArray
from deepseek_trainer.data.sources import Source
from deepseek_trainer.tasks.language.packing import Document, Ids, best_fit, packed_row, row_dtype
from deepseek_trainer.tasks.language.reading import reading
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.tokenizer import documents, trained_tokenizer

PAD = 0  # no document has it but as its first token, which is no target
MEDIAN, SIGMA, SHORTEST = 110, 0.8, 8  # of log-normal lengths [tokens]: many answers of a few lines, some of a page


@dataclass(frozen=True, slots=True)
class Corpus:
    name: str
    documents: list[Ids]
    rows: RowArray
    tokens_of_row: Indices  # padding left out

    @property
    def documents_per_row(self) -> float:
        return len(self.documents) / len(self.rows)

    @property
    def padding(self) -> float:
        """Share of our rows."""
        return 1 - float(self.tokens_of_row.mean()) / int(self.rows.dtype["tokens"].shape[0])


class Stream:
    """Documents without end, at first in the order in which `Loop` takes as many rows."""

    def __init__(self, corpus: Corpus, per_group: int | None = None) -> None:
        """`per_group`: so many in turn have about the same length, as samplers that group by length have it."""
        count = len(corpus.documents)
        if per_group is None:
            self._order = order(count, count).rank_slice(0, 1)
        else:
            by_length = np.argsort([len(document) for document in corpus.documents], kind="stable")
            groups = by_length[: count - count % per_group].reshape(-1, per_group)
            self._order = groups[order(len(groups), len(groups)).rank_slice(0, 1)].ravel()
        self._documents, self._at = corpus.documents, 0

    def take(self, count: int) -> list[Ids]:
        taken = np.arange(self._at, self._at + count) % len(self._order)
        self._at += count
        return [self._documents[i] for i in self._order[taken]]


def fixed(vocab_size: int, length: int, count: int) -> Corpus:
    """Documents that fill a row each."""
    return _generated(f"fixed: {length} tokens each", np.full(count, length), vocab_size, length)


def mixed(vocab_size: int, length: int, count: int) -> Corpus:
    """Lengths as an instruction corpus has them; none is longer than a row."""
    drawn = np.random.default_rng(1).lognormal(np.log(MEDIAN), SIGMA, count)
    lengths = np.clip(drawn, SHORTEST, length).astype(np.int64)
    return _generated(f"mixed: {_described(lengths)}", lengths, vocab_size, length)


def real(place: Path, vocab_size: int, length: int) -> Corpus:
    """The records of a file or a directory, paragraphs of a .txt, with a tokenizer trained on them.

    Of more tokens than a row has, a record is as many documents as it needs.
    """
    records = list(_records(place))
    tokenizer = trained_tokenizer((record.text for record in records), vocab_size)
    whole = [document.tokens for document in documents(tokenizer, records)]
    parts = [tokens[i : i + length] for tokens in whole for i in range(0, len(tokens), length)]
    found = [part for part in parts if len(part) > 1]  # a token alone teaches nothing
    lengths = np.array([*map(len, found)])
    return _packed(f"{place.name}: {_described(lengths)}", found, vocab_size, length)


def _records(place: Path) -> Iterator[Record]:
    spec = DataSpec(train=VolumePath(claim_name="none"), format=DataFormat.TEXT)
    how = reading(spec)
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.suffix in how.readers)
    for record in Source(place if place.is_dir() else place.parent, tuple(files), spec, how).records():
        texts = record.text.split("\n\n") if record.source.endswith(".txt") else [record.text]
        yield from (replace(record, text=text) for text in texts if text.strip())


def _described(lengths: Indices) -> str:
    return f"median {np.median(lengths):.0f}, mean {lengths.mean():.0f}, at most {lengths.max()} tokens"


def _generated(name: str, lengths: Indices, vocab_size: int, length: int) -> Corpus:
    random = np.random.default_rng(0)
    return _packed(
        name, [random.integers(1, vocab_size, count).astype(np.uint32) for count in lengths], vocab_size, length
    )


def _packed(name: str, found: Sequence[Ids], vocab_size: int, length: int) -> Corpus:
    dtype, lengths = row_dtype(length, vocab_size), np.array([*map(len, found)])
    groups = best_fit(lengths.tolist(), length)
    rows = [packed_row([Document(found[i], np.ones(lengths[i], np.bool_)) for i in row], dtype, PAD) for row in groups]
    return Corpus(name, [*found], np.concatenate(rows), np.array([lengths[row].sum() for row in groups]))


def order(count: int, per_step: int) -> Cursor:
    """Which of `count` rows or documents a step takes: the same for all contestants where the counts are."""
    return Cursor(seed=0, rows=count, global_batch=per_step, data_digest="00" * 32)
