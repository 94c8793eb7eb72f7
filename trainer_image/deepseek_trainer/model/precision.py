"""Which numbers a run computes with, and FP16's loss scale."""

from dataclasses import dataclass
from typing import Final

import torch

from deepseek_trainer.contract.optimization import Precision

FIRST_SCALE: Final = 2.0**16
STEPS_TO_GROW: Final = 2000
_DTYPES: Final = {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16, Precision.FP32: torch.float32}


def compute_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """By default BF16 only where the GPU computes in it: one that emulates it is slower than in FP32."""
    if precision is not Precision.AUTO:
        return _DTYPES[precision]
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if has_bf16 else torch.float32


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """BF16 or FP16 compute over FP32 weights where the job, or by default the GPU, wants it."""
    dtype = compute_dtype(precision, device)
    is_low = dtype is not torch.float32
    return torch.autocast(device.type, dtype=dtype if is_low else torch.bfloat16, enabled=is_low)


@dataclass(slots=True)
class LossScale:
    """What the loss is multiplied by, so that FP16's small gradients do not vanish: a power of two.

    Halved when a gradient overflows, doubled after `STEPS_TO_GROW` steps without (arXiv:1710.03740, section 3.2).
    """

    value: float = FIRST_SCALE
    good_steps: int = 0

    def overflowed(self) -> bool:
        """Take in an overflow; whether a smaller scale is left to try."""
        self.value, self.good_steps = self.value / 2, 0
        return self.value >= 1

    def fitted(self) -> None:
        """Take in a step that did not overflow."""
        self.good_steps += 1
        if self.good_steps == STEPS_TO_GROW:
            self.value, self.good_steps = self.value * 2, 0
