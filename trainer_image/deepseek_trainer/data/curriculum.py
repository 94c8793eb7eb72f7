"""How hard a row is, and the order that follows from it.

A row is a bag of packed documents, so that its difficulty is that of their mean.  Best-fit packing puts short
documents beside long ones, which brings rows closer together than their documents are: the order is one of
tendency.  In Text a document that is cut counts in each row with the part that lies there.
"""

from collections.abc import Iterable, Iterator, MutableSequence

import numpy as np
import numpy.typing as npt

from deepseek_trainer.data.permutation import Indices
from deepseek_trainer.data.shards import RowArray


def document_length(row: RowArray) -> float:
    """Mean tokens of the documents in a row of shape (1,), padding left out."""
    length = row["tokens"].shape[1]
    starts = np.flatnonzero(np.unpackbits(row["starts"][0], count=length))
    last = int(starts[-1])
    is_padding = not np.unpackbits(row["learned"][0], count=length)[last:].any()  # of a document something is learned
    return (last if is_padding else length) / (len(starts) - is_padding)


def graded(rows: Iterable[RowArray], lengths: MutableSequence[float]) -> Iterator[RowArray]:
    """The same rows; `lengths` gets the difficulty of each that was taken."""
    for row in rows:
        lengths.append(document_length(row))
        yield row


def by_difficulty(lengths: npt.ArrayLike, rows: Iterable[int]) -> Indices:
    """Row indices, the easy ones first, source by source of so many `rows`; equals stay in the data's order."""
    parts, first = [], 0
    for count in rows:
        parts.append(first + np.argsort(np.asarray(lengths)[first : first + count], kind="stable"))
        first += count
    return np.concatenate(parts)
