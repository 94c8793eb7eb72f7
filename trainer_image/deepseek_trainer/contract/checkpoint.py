"""Saving, sealing and resuming."""

from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.key_ref import KeyRef
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.contract.rules import Model, Rule


class Interval(Model):
    """When to act: after so many steps or seconds, whichever comes first."""

    steps: Annotated[int | None, Field(ge=1, description="Optimizer steps.")] = None
    seconds: Annotated[int | None, Field(ge=1, description="Wall-clock seconds.")] = None

    rules: ClassVar = (
        Rule(
            "has(self.steps) || has(self.seconds)",
            "give steps, seconds or both",
            lambda self: self.steps is not None or self.seconds is not None,
        ),
    )


class Encryption(Model):
    """AES-256-GCM sealing of checkpoints, prepared data and result; format in docs/checkpoint-format.md."""

    key_ref: Annotated[KeyRef, Field(description="Key that wraps the job's data key.")]


class CheckpointPolicy(Model):
    """When the full state is saved, what is kept, where a run resumes, which key seals it, what a stop may take."""

    interval: Annotated[Interval, Field(description="When to save.")] = Interval(steps=500)
    retention: Annotated[Retention, Field(description="What to keep.")] = Retention()
    asynchronous: Annotated[
        bool, Field(description="Train on while a checkpoint is sealed and written, from a copy in the host's memory.")
    ] = True
    wait_for_copy: Annotated[
        bool, Field(description="Wait for that copy at once, not only before the next step changes weights.")
    ] = False
    resume_from: Annotated[
        str,
        Field(
            pattern=r"^(Latest|None|[0-9]{1,9})$",
            description="Where the first attempt begins. Latest: at the newest checkpoint; one of an earlier job of "
            "this name must have the same settings, and either no result yet or fewer steps to train. A step: there, "
            "whatever the settings were. None: start over. Newer checkpoints are set aside, not deleted. Later "
            "attempts resume from the latest.",
        ),
    ] = "Latest"
    encryption: Annotated[Encryption | None, Field(description="Seal checkpoints; default: written in the clear.")] = (
        None
    )
    grace_period_seconds: Annotated[
        int, Field(ge=10, le=3600, description="Time a pod gets to write a last checkpoint when it is stopped.")
    ] = 120

    rules: ClassVar = (
        Rule(
            "!has(self.retention) || !has(self.retention.keepEvery) || !has(self.interval) || !has(self.interval.steps)"
            " || self.retention.keepEvery % self.interval.steps == 0",
            "retention.keepEvery must be a multiple of interval.steps: there is no checkpoint of the steps between",
            lambda self: (
                not (self.retention.keep_every and self.interval.steps)
                or self.retention.keep_every % self.interval.steps == 0
            ),
        ),
    )
