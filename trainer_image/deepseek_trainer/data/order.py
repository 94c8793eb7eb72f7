"""The endless stream of rows that a run reads: a function of seed and position, with no state of its own.

With one source, the stream is its rows under a keyed permutation, another one each epoch.  With several, it is cut into
blocks (of 1000 rows in a mix).  A source has the same number of slots in every block, and its slots read its own
endless stream in order.  Of its n slots, the r-th lies in the r-th n-th of the block, at a keyed place.  So every
stretch of the stream has the shares of the whole, off by fewer rows than there are sources at each end.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

import numpy as np

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.mixture import BLOCK
from deepseek_trainer.data.permutation import Indices, permuted

# Keys of permutations: the seed in the lower 32 bits, the source above it, then what is permuted.
_SOURCE_BIT: Final = 32
_BUCKET_KEY: Final = 1 << 48
_SLOT_KEY: Final = 2 << 48


@dataclass(frozen=True, slots=True)
class Order:
    """The order in which the rows of a split are read.

    `rows` and `slots` have a number for each source; the sources' rows lie one after the other.  `by_difficulty` holds
    row indices, each source's own, easy ones first.  A source's first epoch follows it, shuffled within each of
    `buckets` equal parts.  The classes of data.balanceBy are sources, too.
    """

    rows: tuple[int, ...]
    slots: tuple[int, ...] = (BLOCK,)
    buckets: int = 1
    by_difficulty: Indices | None = field(default=None, compare=False, repr=False)

    @property
    def block(self) -> int:
        """The length of a block [rows]."""
        return sum(self.slots)

    def indices(self, seed: int, start: int, stop: int) -> Indices:
        """Row indices at positions `start` to `stop` of the stream."""
        return self.at(seed, np.arange(start, stop))

    def at(self, seed: int, positions: Indices) -> Indices:
        """Row indices at `positions` of the stream; a far position costs no more than a near one."""
        sources, places = self._drawn(positions, seed)
        return _grouped(sources, places, lambda source, own: self._of_source(source, own, seed))

    def digest(self, data: str) -> str:
        """A digest of the rows and their order.  For the plain order it is `data`, the digest of the rows."""
        if len(self.rows) == 1 and self.by_difficulty is None:
            return data
        return hashlib.sha256(json_text([data, self.slots, self.buckets]).encode()).hexdigest()

    def _drawn(self, positions: Indices, seed: int) -> tuple[Indices, Indices]:
        """The source of each position, and the place in the source's own endless stream."""
        if len(self.rows) == 1:
            return np.zeros_like(positions), positions
        slots, block_rows = np.array(self.slots), self.block
        owners = np.repeat(np.arange(len(slots)), slots)
        ranks = np.arange(block_rows) - (np.cumsum(slots) - slots)[owners]

        def spread(block: int, offsets: Indices) -> Indices:
            jitter = permuted(np.arange(block_rows), block_rows, seed | _SLOT_KEY, block) / block_rows
            return np.argsort((ranks + jitter) / slots[owners], kind="stable")[offsets]

        blocks = positions // block_rows
        drawn = _grouped(blocks, positions % block_rows, spread)
        return owners[drawn], blocks * slots[owners[drawn]] + ranks[drawn]

    def _of_source(self, source: int, places: Indices, seed: int) -> Indices:
        first, rows, key = sum(self.rows[:source]), self.rows[source], seed | source << _SOURCE_BIT
        epochs, offsets = np.divmod(places, rows)
        found = first + permuted(offsets, rows, key, epochs)
        is_first = epochs == 0
        if self.by_difficulty is not None and is_first.any():
            found[is_first] = self.by_difficulty[first + _in_buckets(offsets[is_first], rows, self.buckets, key)]
        return found


def slots_of(weights: Sequence[float], minimum: Sequence[int], block: int = BLOCK) -> tuple[int, ...]:
    """The slots of each source in a `block` [rows]: by weight, but at least its `minimum` [slots].

    The largest remainders are rounded up, of equal ones the first.  Each minimum is at least 1; together they are at
    most `block`.
    """
    exact = [Fraction(weight) for weight in weights]
    held: set[int] = set()
    while True:
        free = [k for k in range(len(exact)) if k not in held]
        rest = block - sum(minimum[k] for k in held)
        quotas = {k: rest * exact[k] / sum(exact[j] for j in free) for k in free}
        if not (low := {k for k in free if quotas[k] < minimum[k]}):
            break
        held |= low
    slots = [int(quotas[k]) if k in quotas else minimum[k] for k in range(len(exact))]
    for k in sorted(free, key=lambda k: int(quotas[k]) - quotas[k])[: block - sum(slots)]:
        slots[k] += 1
    return tuple(slots)


def _in_buckets(offsets: Indices, rows: int, buckets: int, key: int) -> Indices:
    """`offsets` into `rows`, shuffled within each bucket.  Buckets differ in size by at most one row."""
    edges = rows * np.arange(buckets + 1) // buckets

    def shuffled(bucket: int, inside: Indices) -> Indices:
        low, high = int(edges[bucket]), int(edges[bucket + 1])
        return low + permuted(inside - low, high - low, key | _BUCKET_KEY, bucket)

    return _grouped(np.searchsorted(edges, offsets, "right") - 1, offsets, shuffled)


def _grouped(groups: Indices, values: Indices, image: Callable[[int, Indices], Indices]) -> Indices:
    """The images of all `values`, in their order; those of a group are computed at once."""
    found = np.empty_like(values)
    for group in np.unique(groups):
        here = groups == group
        found[here] = image(int(group), values[here])
    return found
