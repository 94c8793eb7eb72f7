"""Orders rows from easy to hard.  The task says how hard a row is."""

from collections.abc import Callable, Iterable, Iterator, MutableSequence

import numpy as np
import numpy.typing as npt

from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.permutation import Indices


def graded(
    rows: Iterable[RowArray], difficulty: Callable[[RowArray], float], grades: MutableSequence[float]
) -> Iterator[RowArray]:
    """The same rows.  The difficulty of each is appended to `grades` as it goes by."""
    for row in rows:
        grades.append(difficulty(row))
        yield row


def by_difficulty(grades: npt.ArrayLike, rows: Iterable[int]) -> Indices:
    """Row indices, source by source, the easy ones of each first.  Equally hard rows keep their order.

    `rows`: the number of rows of each source.
    """
    parts, first = [], 0
    for count in rows:
        parts.append(first + np.argsort(np.asarray(grades)[first : first + count], kind="stable"))
        first += count
    return np.concatenate(parts)
