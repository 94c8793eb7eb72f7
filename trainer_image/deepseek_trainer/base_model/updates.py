"""What an adapter of LoRA adds to one weight of its base: computed in fp32, stored as the base stores it.

Without torch.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.tensorfile import View

Matrix = npt.NDArray[np.float32]

STORED: Final = ("F32", "F16", "BF16")  # what weights may be held in
_HALF: Final = 16  # [bits]


@dataclass(frozen=True, slots=True)
class Update:
    """`scale` B A of one layer; with DoRA (arXiv:2402.09353) also the length of each row of the sum."""

    a: Matrix
    b: Matrix
    scale: float
    magnitude: Matrix | None = None
    is_transposed: bool = False  # the weight, which then is inputs x outputs

    @property
    def shape(self) -> tuple[int, int]:
        """Of the weight that it is for."""
        outputs, inputs = self.b.shape[0], self.a.shape[1]
        return (inputs, outputs) if self.is_transposed else (outputs, inputs)

    def added_to(self, weight: Matrix) -> Matrix:
        """The sum, as peft's `merge_and_unload` makes it."""
        rows = (weight.T if self.is_transposed else weight) + np.float32(self.scale) * (self.b @ self.a)
        if self.magnitude is not None:
            rows *= (self.magnitude / np.linalg.norm(rows, axis=1))[:, None]
        return rows.T if self.is_transposed else rows


def updated(name: str, stored: View, update: Update) -> bytes:
    """The bytes of a weight with `update` added.  Raises ConfigError where the sum is more than its type can hold."""
    with np.errstate(all="ignore"):
        total = update.added_to(fp32(stored))
        content = from_fp32(total, stored.dtype)
    rounded = fp32(View(stored.dtype, stored.shape, memoryview(content)))
    if not (np.isfinite(total).all() and np.isfinite(rounded).all()):
        raise ConfigError(
            f"model.adapter: with it {name} is not finite in {stored.dtype}",
            hint="the adapter or the base is damaged: copy it again from where it was trained",
        )
    return content


def fp32(stored: View) -> Matrix:
    """The values of a tensor whose type is one of `STORED`."""
    if stored.dtype == "BF16":
        values = (np.frombuffer(stored.data, "<u2").astype(np.uint32) << _HALF).view(np.float32)
    else:
        values = np.frombuffer(stored.data, {"F32": "<f4", "F16": "<f2"}[stored.dtype]).astype(np.float32)
    return values.reshape(stored.shape)


def from_fp32(values: Matrix, dtype: str) -> bytes:
    """Little-endian bytes, rounded to the nearest value of `dtype`, of two to the even one."""
    if dtype != "BF16":
        return np.ascontiguousarray(values, {"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> _HALF) & 1)) >> _HALF).astype("<u2").tobytes()
