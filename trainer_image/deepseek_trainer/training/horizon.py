"""Pure: where a run ends, and which of its steps are logged."""

import math
from dataclasses import dataclass
from typing import Final, Self

from deepseek_trainer.contract.optimization import OptimizationSpec

EPOCHS: Final = 3  # where the job says nothing
LOGGED_STEPS: Final = 200  # points of the loss curve over a whole run
_LOGGED_EVERY: Final = 10  # steps, in a run whose length only time will tell


@dataclass(frozen=True, slots=True)
class Horizon:
    """A run ends after so many optimizer steps or seconds of them, whichever come first."""

    steps: int | None
    seconds: float | None

    @classmethod
    def of(cls, optimization: OptimizationSpec, rows: int) -> Self:
        """Of a run over `rows` training rows."""
        minutes = optimization.max_minutes
        epochs = optimization.epochs or (None if minutes else EPOCHS)
        in_epochs = math.ceil(epochs * rows / optimization.global_batch_size) if epochs else None
        return cls(optimization.max_steps or in_epochs, minutes and 60 * minutes)

    def is_reached(self, step: int, seconds: float) -> bool:
        return (self.steps is not None and step >= self.steps) or self.time_spent(seconds) >= 1

    def time_spent(self, seconds: float) -> float:
        """Share of the time budget; 0 without one."""
        return seconds / self.seconds if self.seconds else 0.0

    def expected_steps(self, step: int, seconds: float) -> int:
        """Of the whole run, as it looks after `step` steps in `seconds`."""
        in_time = round(step * self.seconds / seconds) if self.seconds and seconds else None
        known = [steps for steps in (self.steps, in_time) if steps is not None]
        return max(step, min(known)) if known else step

    def is_logged(self, step: int) -> bool:
        return step % (max(1, self.steps // LOGGED_STEPS) if self.steps else _LOGGED_EVERY) == 0
