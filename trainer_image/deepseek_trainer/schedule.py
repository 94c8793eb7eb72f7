"""Pure: step to learning rate."""

import math

from deepseek_trainer.contract.optimization import OptimizationSpec, Schedule

FLOOR = 0.1  # cosine ends at this share of the peak


def learning_rate(step: int, total_steps: int, optimization: OptimizationSpec) -> float:
    """Learning rate of optimizer step `step` (0-based): linear warm-up, then constant or half a cosine.

    Warm-up is cut to a tenth of a run that is shorter than ten times as long, so that every run
    reaches its peak.
    """
    peak = optimization.learning_rate
    warmup = min(optimization.warmup_steps, total_steps // 10)
    if step < warmup:
        return peak * (step + 1) / warmup
    if optimization.schedule is Schedule.CONSTANT:
        return peak
    progress = (step - warmup) / max(1, total_steps - warmup)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))
