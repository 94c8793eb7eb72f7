"""Which rows a step trains on: a keyed permutation per epoch, and a position in it.

The order depends on seed, epoch and number of rows alone, never on the number of ranks, and any
position is computed directly: resuming costs nothing, however far the run had come.

Epoch boundary: no row is dropped and none is repeated early.  A batch that an epoch cannot fill goes
on with the first rows of the next epoch's permutation.
"""

import hashlib
import math
import struct
from dataclasses import dataclass, replace
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from deepseek_trainer.contract.errors import DataError, IntegrityError

STATE_BYTES: Final = 32
_STATE = struct.Struct("<QQ16s")
_ROUNDS: Final = 8

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Cursor:
    """The next step's place in an endless stream of row indices.

    `consumed` counts the rows [rows] that earlier steps took, over all ranks; `data_digest` is the hex
    digest of the prepared data that the indices point into.  Immutable: `advanced()` is the cursor
    of the step after.
    """

    seed: int
    rows: int
    global_batch: int
    data_digest: str
    consumed: int = 0

    @property
    def epoch(self) -> float:
        """Passes over the data done so far; 1.5 is the middle of the second."""
        return self.consumed / self.rows

    def rank_slice(self, rank: int, world_size: int) -> Indices:
        """Row indices of the next step for this rank, int64: its contiguous part of the batch, as long as others'."""
        assert self.global_batch % world_size == 0, "the spec makes globalBatchSize a multiple of the world size"
        share = self.global_batch // world_size
        start = self.consumed + rank * share
        return self._at(start, start + share)

    def advanced(self) -> Self:
        """The cursor after one more step."""
        return replace(self, consumed=self.consumed + self.global_batch)

    def state(self) -> bytes:
        """32 bytes, little-endian: seed (u64), consumed (u64), first 16 bytes of the data digest."""
        return _STATE.pack(self.seed, self.consumed, bytes.fromhex(self.data_digest)[:16])

    @classmethod
    def from_state(cls, state: bytes, *, rows: int, global_batch: int, data_digest: str) -> Self:
        """The cursor that `state()` came from, over the same data.

        Raises DataError where the prepared data are not those that the state was made with.
        """
        if len(state) != STATE_BYTES:
            raise IntegrityError(f"data cursor has {len(state)} bytes: it must have {STATE_BYTES}")
        seed, consumed, prefix = _STATE.unpack(state)
        if prefix != bytes.fromhex(data_digest)[:16]:
            raise DataError(
                f"the checkpoint was trained on data {prefix.hex()}, the prepared data are {data_digest[:32]}: "
                "a run cannot go on with other data",
                hint="restore the data, or start over with checkpoint.resumeFrom: None",
            )
        return cls(seed=seed, rows=rows, global_batch=global_batch, data_digest=data_digest, consumed=consumed)

    def _at(self, start: int, stop: int) -> Indices:
        parts = []
        while start < stop:
            epoch, offset = divmod(start, self.rows)
            count = min(stop - start, self.rows - offset)
            parts.append(permuted(np.arange(offset, offset + count), self.rows, self.seed, epoch))
            start += count
        return np.concatenate(parts)


def permuted(positions: Indices, size: int, seed: int, epoch: int) -> Indices:
    """Images of `positions` (each in [0, size)) under the permutation of (seed, epoch).

    A Feistel network over pairs of digits in base ceil(sqrt(size)), with cycle walking back into
    range: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.  For a good
    shuffle, not for secrecy.  O(1) memory beside the result.
    """
    base = np.uint64(math.isqrt(size - 1) + 1)
    keys = _round_keys(seed, epoch)
    image = _feistel(positions.astype(np.uint64), base, keys)
    while (outside := image >= size).any():
        image[outside] = _feistel(image[outside], base, keys)
    return image.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], base: np.uint64, keys: tuple[np.uint64, ...]) -> npt.NDArray[np.uint64]:
    left, right = values // base, values % base
    for key in keys:
        left, right = right, (left + _mixed(right ^ key) % base) % base
    return left * base + right


def _mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser, https://doi.org/10.1145/2714064.2660195."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    digest = hashlib.blake2b(struct.pack("<QQ", seed, epoch), digest_size=8 * _ROUNDS, person=b"dstj cursor").digest()
    return tuple(np.frombuffer(digest, "<u8"))
