"""Which checkpoints stay: the rule as a job file gives it, and the steps that it keeps."""

from collections.abc import Iterable
from typing import Annotated

from pydantic import Field

from deepseek_trainer.contract.rules import Model


class Retention(Model):
    """Which complete checkpoints stay on the volume."""

    keep_last: Annotated[int, Field(ge=1, le=1000, description="Newest checkpoints kept.")] = 3
    keep_best: Annotated[bool, Field(description="Also keep the one with the lowest loss, and export it.")] = True
    keep_every: Annotated[
        int | None,
        Field(ge=1, description="Also keep those whose step is a multiple of this; a multiple of interval.steps."),
    ] = None

    def kept(self, steps: Iterable[int], best_step: int | None) -> frozenset[int]:
        """The steps among `steps` that stay."""
        ordered = sorted(steps)
        best = [step for step in ordered if step == best_step and self.keep_best]
        regular = [step for step in ordered if self.keep_every and step % self.keep_every == 0]
        return frozenset(ordered[-self.keep_last :] + best + regular)
