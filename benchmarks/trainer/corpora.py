"""Generated documents, and the rows that our packing makes of them.  The same seed, the same tokens."""

from dataclasses import dataclass

import bare_machine  # noqa: F401 first
import numpy as np

from deepseek_trainer.cursor import Cursor, Indices
from deepseek_trainer.packing import Document, Ids, best_fit, packed_row, row_dtype
from deepseek_trainer.shards import RowArray

PAD = 0  # no document has it
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
    return _corpus(f"fixed: {length} tokens each", np.full(count, length), vocab_size, length)


def mixed(vocab_size: int, length: int, count: int) -> Corpus:
    """Lengths as an instruction corpus has them; none is longer than a row."""
    drawn = np.random.default_rng(1).lognormal(np.log(MEDIAN), SIGMA, count)
    lengths = np.clip(drawn, SHORTEST, length).astype(np.int64)
    name = f"mixed: median {np.median(lengths):.0f}, mean {lengths.mean():.0f}, at most {length} tokens"
    return _corpus(name, lengths, vocab_size, length)


def _corpus(name: str, lengths: Indices, vocab_size: int, length: int) -> Corpus:
    random, dtype = np.random.default_rng(0), row_dtype(length, vocab_size)
    documents = [random.integers(1, vocab_size, count).astype(np.uint32) for count in lengths]
    groups = best_fit(lengths.tolist(), length)
    rows = [
        packed_row([Document(documents[i], np.ones(lengths[i], np.bool_)) for i in row], dtype, PAD) for row in groups
    ]
    return Corpus(name, documents, np.concatenate(rows), np.array([lengths[row].sum() for row in groups]))


def order(count: int, per_step: int) -> Cursor:
    """Which of `count` rows or documents a step takes: the same for all contestants where the counts are."""
    return Cursor(seed=0, rows=count, global_batch=per_step, data_digest="00" * 32)
