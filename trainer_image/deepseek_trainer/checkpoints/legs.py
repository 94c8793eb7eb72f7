"""The legs of a run: which of its steps were trained by which job, and with which settings.

A checkpoint records its legs in the manifest, so they are sealed and authenticated as the manifest is.  They decide
who goes on from it unasked (run/resume.py), and the model card lists them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, telling
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.foreign import optional, whole, word
from deepseek_trainer.contract.optimization import WARMUP_STEPS
from deepseek_trainer.contract.shaping import Change, changes, shaping

LEGS = "legs"  # in the manifest's meta


@dataclass(frozen=True, slots=True)
class Leg:
    """The steps after `after` that one job trained with the same settings."""

    job_uid: str
    after: int
    settings: (
        Mapping[str, Any] | None
    )  # those that shape the weights; None where an earlier version did not record them

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(word(data["jobUid"]), whole(data["after"]), optional(dict, data["settings"]))

    def to_json(self) -> dict[str, Any]:
        return {"jobUid": self.job_uid, "after": self.after, "settings": self.settings}

    def changed(self, config: TrainingConfig) -> list[Change]:
        """What `config` would train with other settings; nothing where those of this leg are not known."""
        return [] if self.settings is None else list(changes(config, _read_by(config, self.settings)))


def _read_by(config: TrainingConfig, settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """`settings`, in which versions without warmupFraction recorded their default for a warm-up that was not given."""
    optimization, asked = settings.get("optimization") or {}, config.optimization.warmup_steps
    is_default = "warmupFraction" not in optimization and optimization.get("warmupSteps") == WARMUP_STEPS
    if not is_default or asked not in (None, WARMUP_STEPS):
        return settings
    return {**settings, "optimization": {**optimization, "warmupSteps": asked}}


def legs_of(info: CheckpointInfo) -> tuple[Leg, ...]:
    """The legs that led to a checkpoint, at least one.  Earlier versions recorded none, but the job that saved last."""
    with telling(info):
        recorded = info.meta.get(LEGS)
        if recorded is None:
            return (Leg(word(info.meta["jobUid"]), 0, None),)
        first, *others = map(Leg.from_json, recorded)
        return (first, *others)


def legs_from(info: CheckpointInfo | None, job_uid: str, config: TrainingConfig) -> tuple[Leg, ...]:
    """The legs of a run that goes on from `info` under `config`; None: from the first step."""
    earlier = legs_of(info) if info else ()
    own = Leg(job_uid, info.step if info else 0, shaping(config))
    if earlier and earlier[-1].job_uid == job_uid and not earlier[-1].changed(config):
        own = Leg(job_uid, earlier[-1].after, own.settings)
    return (*(leg for leg in earlier if leg.after < own.after), own)


@dataclass(frozen=True, slots=True)
class Trained:
    """Steps that trained a model, and how."""

    first: int
    last: int  # before `first` where there is none
    job_uid: str
    changed: Sequence[Change] | None  # what another config would train with other settings; None: not known


def trained(step: int, legs: Sequence[Leg], config: TrainingConfig) -> list[Trained]:
    """The legs that led to the weights of `step`, held to `config`."""
    ends = [leg.after for leg in legs[1:]] + [step]
    return [
        Trained(leg.after + 1, min(end, step), leg.job_uid, None if leg.settings is None else leg.changed(config))
        for leg, end in zip(legs, ends, strict=True)
        if leg.after < max(step, 1)
    ]
