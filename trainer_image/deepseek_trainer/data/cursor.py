"""Which rows a step trains on: a position in the endless stream that `order.py` makes from a seed.

The stream does not depend on the number of ranks.  Any position is computed directly, so resuming costs nothing,
however far the run had come.

At the end of an epoch no row is dropped and none is repeated early: a batch that the epoch cannot fill goes on with the
first rows of the next epoch's permutation.
"""

import struct
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np

from deepseek_trainer.contract.errors import DataError, IntegrityError
from deepseek_trainer.data.draws import Numbers, numbers_at
from deepseek_trainer.data.order import Order
from deepseek_trainer.data.permutation import Indices, permuted

STATE_BYTES: Final = 32
_PARTNER_KEY: Final = 3 << 48  # unlike all keys in `order`
_STATE = struct.Struct("<QQ16s")


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next step's place in an endless stream of row indices.

    `consumed` counts the rows that earlier steps took, over all ranks.  `data_digest` (hex) names the prepared data
    that the indices point into, and their order unless it is the plain one (`Order.digest`).  Immutable: `advanced()`
    returns the next step's cursor.
    """

    seed: int
    rows: int
    global_batch: int
    data_digest: str
    consumed: int = 0
    order: Order | None = None  # None: the plain order of one source

    @property
    def epoch(self) -> float:
        """How many passes over the data are done; 1.5 is the middle of the second.

        A pass over a mix is as many rows as all its sources or classes have together, whichever they come from.
        """
        return self.consumed / self.rows

    def rank_slice(self, rank: int, world_size: int) -> Indices:
        """This rank's row indices of the next step, int64: a contiguous part of the batch, as long on every rank."""
        return self.rows_at(self.positions(rank, world_size))

    def positions(self, rank: int, world_size: int) -> Indices:
        """The positions of the stream at which `rank_slice` reads."""
        assert self.global_batch % world_size == 0, "the spec makes globalBatchSize a multiple of the world size"
        share = self.global_batch // world_size
        start = self.consumed + rank * share
        return np.arange(start, start + share)

    def rows_at(self, positions: Indices) -> Indices:
        """Row indices at `positions` of the stream."""
        return (self.order or Order((self.rows,))).at(self.seed, positions)

    def numbers_at(self, positions: Indices) -> Numbers:
        """64 random bits for each of `positions`: the same for the same seed and position."""
        return numbers_at(self.seed, positions)

    def partners_of(self, positions: Indices) -> Indices:
        """A partner for each of the next step's `positions`, from the same step: a keyed permutation of its batch."""
        step = self.consumed // self.global_batch
        return self.consumed + permuted(positions - self.consumed, self.global_batch, self.seed | _PARTNER_KEY, step)

    def advanced(self) -> Self:
        """The cursor after one more step."""
        return replace(self, consumed=self.consumed + self.global_batch)

    def state(self) -> bytes:
        """32 bytes, little-endian: seed (u64), consumed (u64), first 16 bytes of the data digest."""
        return _STATE.pack(self.seed, self.consumed, bytes.fromhex(self.data_digest)[:16])

    @classmethod
    def from_state(
        cls,
        state: bytes,
        *,
        rows: int,
        global_batch: int,
        data_digest: str,
        earlier: str | None = None,
        order: Order | None = None,
    ) -> Self:
        """The cursor that `state()` came from, over the same data in the same order.

        `earlier` is the digest by which earlier versions called these data.  Raises DataError for other data, or
        another order of them.
        """
        if len(state) != STATE_BYTES:
            raise IntegrityError(f"data cursor has {len(state)} bytes: it must have {STATE_BYTES}")
        seed, consumed, prefix = _STATE.unpack(state)
        if prefix not in [bytes.fromhex(each)[:16] for each in (data_digest, earlier or data_digest)]:
            raise DataError(
                "the checkpoint was trained on other data than those that were prepared now: "
                "a run cannot go on with other data, nor with other shares or another order of them",
                hint="restore the data and what orders them (data.sources, data.balanceBy, data.curriculum), or "
                "start over with checkpoint.resumeFrom: None",
            )
        return cls(
            seed=seed, rows=rows, global_batch=global_batch, data_digest=data_digest, consumed=consumed, order=order
        )
