"""Pure: where a run ends, and which of its steps are logged."""

import math
from dataclasses import dataclass
from typing import Final, Self

from deepseek_trainer.contract.optimization import OptimizationSpec

EPOCHS: Final = 3  # if the job sets no length
LOGGED_STEPS: Final = 200  # points of the loss curve over a whole run
_LOGGED_EVERY: Final = 10  # steps, in a run that only time ends


@dataclass(frozen=True, slots=True)
class Horizon:
    """A run ends after `steps` optimizer steps, or after `seconds` spent in them, whichever comes first."""

    steps: int | None
    seconds: float | None

    @classmethod
    def of(cls, optimization: OptimizationSpec, rows: int) -> Self:
        """The horizon of a run over `rows` training rows."""
        minutes = optimization.max_minutes
        epochs = optimization.epochs or (None if minutes else EPOCHS)
        in_epochs = _steps(epochs * rows / optimization.global_batch_size) if epochs else None
        return cls(optimization.max_steps or in_epochs, minutes and 60 * minutes)

    @property
    def ends(self) -> tuple[float, float]:
        """The steps and the seconds after which it ends, at the latest; infinity where they end nothing."""
        return (math.inf if self.steps is None else self.steps, math.inf if self.seconds is None else self.seconds)

    def goes_beyond(self, other: Self) -> bool:
        """Whether a run with this horizon is longer than one with `other`, however fast it is."""
        return self != other and all(mine >= theirs for mine, theirs in zip(self.ends, other.ends, strict=True))

    def is_reached(self, step: int, seconds: float) -> bool:
        return (self.steps is not None and step >= self.steps) or self.time_spent(seconds) >= 1

    def time_spent(self, seconds: float) -> float:
        """The share of the time budget that is spent; 0 without one."""
        return seconds / self.seconds if self.seconds else 0.0

    def expected_steps(self, step: int, seconds: float) -> int:
        """The expected steps of the whole run, when `step` steps have taken `seconds`."""
        in_time = round(step * self.seconds / seconds) if self.seconds and seconds else None
        known = [steps for steps in (self.steps, in_time) if steps is not None]
        return max(step, min(known)) if known else step

    def is_logged(self, step: int) -> bool:
        return step % (max(1, self.steps // LOGGED_STEPS) if self.steps else _LOGGED_EVERY) == 0


def _steps(batches: float) -> int:
    """So many batches, of which the last may be a part: 1.1 x 10 rows are 11 of them, though 11.000000000000002."""
    return max(1, math.ceil(round(batches, 6)))
