"""Random numbers that depend on the job's seed and a row's position in the stream, and on nothing else.

An augmentation or a dropout mask that is drawn from these numbers is the same after a kill, at any number of ranks and
in micro-batches of any size.  A global random stream would give different ones each time.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from deepseek_trainer.data.permutation import Indices, mixed

RowArray = npt.NDArray[np.void]
Numbers = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Draws:
    """What is drawn for the B rows of a batch.

    `numbers` (B,) has 64 random bits for each row.  `partners()` reads the rows (B,) that these may be mixed with, and
    their numbers: a keyed permutation of the step's whole batch, over all ranks, chooses them.
    """

    numbers: Numbers
    partners: Callable[[], tuple[RowArray, Numbers]]


def numbers_at(seed: int, positions: Indices) -> Numbers:
    """64 random bits for each position of the stream: SplitMix64, begun at a place that `seed` chooses."""
    start = mixed(np.array([seed], np.uint64) + _GOLDEN)
    return mixed(start + (positions.astype(np.uint64) + np.uint64(1)) * _GOLDEN)


def salted(numbers: Numbers, salt: int) -> Numbers:
    """Another 64 bits for each number: each use of a row has its own `salt`, and so its own draw."""
    return mixed(numbers ^ mixed(np.array([salt + 1], np.uint64) * _GOLDEN))


def uniform(numbers: Numbers) -> npt.NDArray[np.float64]:
    """A number in [0, 1) for each, from its upper 53 bits."""
    return (numbers >> np.uint64(11)).astype(np.float64) / (1 << 53)
