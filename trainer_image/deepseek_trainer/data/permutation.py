"""A keyed permutation of any size.  Each image is computed by itself."""

import hashlib
import math
import struct
from typing import Final

import numpy as np
import numpy.typing as npt

_ROUNDS: Final = 8

Indices = npt.NDArray[np.int64]


def permuted(positions: Indices, size: int, seed: int, epoch: int | Indices) -> Indices:
    """Images of `positions`, each in [0, size), under the permutation that (seed, epoch) names.

    `epoch` is one for all positions, or one for each.  A Feistel network over pairs of digits in base ceil(sqrt(size)),
    with cycle walking back into range: J. Black and P. Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002.
    It shuffles well, but hides nothing.  O(1) memory beside the result.
    """
    base = np.uint64(math.isqrt(size - 1) + 1)
    epochs, at = np.unique(np.broadcast_to(epoch, positions.shape), return_inverse=True)
    keys = np.stack([_round_keys(seed, int(each)) for each in epochs], axis=1)[:, at]
    image = _feistel(positions.astype(np.uint64), base, keys)
    while (outside := np.flatnonzero(image >= size)).size:
        image[outside] = _feistel(image[outside], base, keys[:, outside])
    return image.astype(np.int64)


def _feistel(values: npt.NDArray[np.uint64], base: np.uint64, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`keys` has a row for each round, with a key for each value."""
    left, right = values // base, values % base
    for key in keys:
        left, right = right, (left + mixed(right ^ key) % base) % base
    return left * base + right


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser, https://doi.org/10.1145/2714064.2660195."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(seed: int, epoch: int) -> npt.NDArray[np.uint64]:
    digest = hashlib.blake2b(struct.pack("<QQ", seed, epoch), digest_size=8 * _ROUNDS, person=b"dstj cursor").digest()
    return np.frombuffer(digest, "<u8")
