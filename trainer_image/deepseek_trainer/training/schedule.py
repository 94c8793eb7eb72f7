"""Pure: the learning rate of a step, from how far the run has come."""

import math
from typing import Final

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.optimization import WARMUP_STEPS, OptimizationSpec, Schedule
from deepseek_trainer.training.horizon import Horizon

FLOOR: Final = 0.1  # a cosine ends at this share of the peak
_FIRST: Final = 0.01  # of a warm-up by time: the first step, before which none is spent, should learn something


def learning_rate(step: int, total_steps: int | None, optimization: OptimizationSpec, time_spent: float = 0.0) -> float:
    """The learning rate of optimizer step `step` (0-based): linear warm-up, then the schedule.

    `total_steps` is None if only time ends the run.  `time_spent` is the share of the run's time budget that is spent.
    Whichever of steps and time is further decides how far the schedule is.  Plateau's halvings depend on evaluations:
    the caller applies them.
    """
    peak, warmup = optimization.peak_rate, warmup_steps(total_steps, optimization)
    if warmup is None:
        return peak * _by_time(time_spent, optimization)
    if step < warmup:
        return peak * (step + 1) / warmup
    in_steps = 0.0 if total_steps is None else (step - warmup) / max(1, total_steps - warmup)
    progress = max(in_steps, min(1.0, time_spent))
    return peak * _share(progress, optimization)


def warmup_steps(total_steps: int | None, optimization: OptimizationSpec) -> int | None:
    """The steps of warm-up: those that the job asks for; None for a share of a run that only time ends."""
    if (fraction := optimization.warmup_fraction) is not None:
        return None if total_steps is None else math.ceil(round(fraction * total_steps, 6))
    if (asked := optimization.warmup_steps) is not None:
        return asked
    return WARMUP_STEPS if total_steps is None else min(WARMUP_STEPS, total_steps // 10)


def refuse_endless_warmup(optimization: OptimizationSpec, rows: int) -> None:
    """Raise ConfigError for a warm-up of more steps than the run over `rows` training rows has."""
    asked, total_steps = optimization.warmup_steps, Horizon.of(optimization, rows).steps
    if asked is not None and total_steps is not None and asked > total_steps:
        raise ConfigError(
            f"optimization.warmupSteps: {asked} is more than the {total_steps} steps of the run, "
            "which would never reach its learning rate",
            hint="lower it, set warmupFraction: 0.1, or drop both: then it is a tenth of the run, and at most "
            f"{WARMUP_STEPS} steps",
        )


def _by_time(time_spent: float, optimization: OptimizationSpec) -> float:
    """The share of the peak in a run that only time ends, with a share of that time as warm-up."""
    warmup, spent = optimization.warmup_fraction or 0.0, min(1.0, time_spent)
    if spent < warmup:
        return max(spent, _FIRST * warmup) / warmup
    return _share((spent - warmup) / (1 - warmup) if warmup < 1 else 0.0, optimization)


def _share(progress: float, optimization: OptimizationSpec) -> float:
    """The share of the peak, after `progress` (0 to 1) of what follows warm-up."""
    match optimization.schedule:
        case Schedule.COSINE:
            return _cosine(progress)
        case Schedule.LINEAR:
            return 1 - progress
        case Schedule.COSINE_RESTARTS:
            return _cosine(progress * optimization.cycles % 1.0)
        case Schedule.WSD:
            return min(1.0, (1 - progress) / optimization.decay_fraction)
        case Schedule.PLATEAU | Schedule.CONSTANT:
            return 1.0


def _cosine(progress: float) -> float:
    """Half a cosine, from 1 to `FLOOR`."""
    return FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress))
