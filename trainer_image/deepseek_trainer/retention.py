"""Which checkpoints stay."""

from collections.abc import Iterable

from deepseek_trainer.contract.config import Retention


def kept(steps: Iterable[int], retention: Retention, best_step: int | None) -> frozenset[int]:
    """The newest `keep_last` steps, and the best one if the job keeps it."""
    ordered = sorted(steps)
    newest = ordered[-retention.keep_last :]
    best = [step for step in ordered if step == best_step and retention.keep_best]
    return frozenset(newest + best)
