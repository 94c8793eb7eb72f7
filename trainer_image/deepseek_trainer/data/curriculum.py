"""The order of rows from easy to hard; how hard a row is, its task says."""

from collections.abc import Callable, Iterable, Iterator, MutableSequence

import numpy as np
import numpy.typing as npt

from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.permutation import Indices


def graded(
    rows: Iterable[RowArray], difficulty: Callable[[RowArray], float], grades: MutableSequence[float]
) -> Iterator[RowArray]:
    """The same rows; `grades` gets the difficulty of each that was taken."""
    for row in rows:
        grades.append(difficulty(row))
        yield row


def by_difficulty(grades: npt.ArrayLike, rows: Iterable[int]) -> Indices:
    """Row indices, the easy ones first, source by source of so many `rows`; equals stay in the data's order."""
    parts, first = [], 0
    for count in rows:
        parts.append(first + np.argsort(np.asarray(grades)[first : first + count], kind="stable"))
        first += count
    return np.concatenate(parts)
