"""Pure: the learning rate of a step, from how far the run has come."""

import math
from typing import Final

from deepseek_trainer.contract.optimization import OptimizationSpec, Schedule

FLOOR: Final = 0.1  # a cosine ends at this share of the peak


def learning_rate(step: int, total_steps: int | None, optimization: OptimizationSpec, time_spent: float = 0.0) -> float:
    """The learning rate of optimizer step `step` (0-based): linear warm-up, then the schedule.

    `total_steps` is None if only time ends the run.  `time_spent` is the share of the run's time budget that is spent.
    Whichever of steps and time is further decides how far the schedule is.  Warm-up takes at most a tenth of the steps,
    so that every run reaches its peak.  Plateau's halvings depend on evaluations: the caller applies them.
    """
    peak = optimization.learning_rate
    warmup = optimization.warmup_steps if total_steps is None else min(optimization.warmup_steps, total_steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    in_steps = 0.0 if total_steps is None else (step - warmup) / max(1, total_steps - warmup)
    progress = max(in_steps, min(1.0, time_spent))
    return peak * _share(progress, optimization)


def _share(progress: float, optimization: OptimizationSpec) -> float:
    """The share of the peak, after `progress` (0 to 1) of what follows warm-up."""
    match optimization.schedule:
        case Schedule.COSINE:
            return _cosine(progress)
        case Schedule.COSINE_RESTARTS:
            return _cosine(progress * optimization.cycles % 1.0)
        case Schedule.WSD:
            return min(1.0, (1 - progress) / optimization.decay_fraction)
        case Schedule.PLATEAU | Schedule.CONSTANT:
            return 1.0


def _cosine(progress: float) -> float:
    """Half a cosine, from 1 to `FLOOR`."""
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))
