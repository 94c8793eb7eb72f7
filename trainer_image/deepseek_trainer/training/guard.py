"""Pure: whether a step may change the weights."""

import math
from dataclasses import dataclass
from enum import Enum
from typing import Final

from deepseek_trainer.contract.optimization import Guard

_MEMORY: Final = 0.98  # of the running mean of gradient norms: about the last 50 steps
_SETTLED: Final = 20  # steps before the mean shows what is usual


class Verdict(Enum):
    GOOD = "Good"
    NOT_FINITE = "NotFinite"
    SPIKE = "Spike"


@dataclass(slots=True)
class NormWatch:
    """What the gradient norms of a run have been so far.  It is saved as JSON in the checkpoint."""

    mean: float = 0.0
    steps: int = 0  # that the mean is of
    skipped: int = 0  # in a row

    def judge(self, norm: float, guard: Guard) -> Verdict:
        """Take in the norm of a step.  All ranks know the same norm, and so come to the same verdict."""
        verdict = self._verdict(norm, guard)
        if verdict is not Verdict.GOOD:
            self.skipped += 1
            return verdict
        self.skipped = 0
        self.steps += 1
        memory = min(_MEMORY, 1 - 1 / self.steps)
        self.mean = memory * self.mean + (1 - memory) * norm
        return verdict

    def _verdict(self, norm: float, guard: Guard) -> Verdict:
        if not math.isfinite(norm):
            return Verdict.NOT_FINITE
        is_settled = self.steps >= _SETTLED and guard.spike_factor is not None
        if is_settled and norm > (guard.spike_factor or 0) * self.mean:
            return Verdict.SPIKE
        return Verdict.GOOD
