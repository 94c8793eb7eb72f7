"""Which checkpoint a run goes on from.

Unasked, a run goes on from its job's own checkpoints, and from those of an earlier job of the same name that would
train the same model and has not exported it yet, or that only ends sooner: then its settings but the length are those
of now, and the schedule goes on where the longer run would be.  All else is only done if `checkpoint.resumeFrom` names
the step.
"""

from typing import Final

from deepseek_trainer.checkpoints.catalog import telling
from deepseek_trainer.checkpoints.legs import legs_of
from deepseek_trainer.checkpoints.store import CheckpointInfo
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.contract.shaping import Change, described
from deepseek_trainer.run.rank import Rank, attempt, job_uid
from deepseek_trainer.training.horizon import Horizon
from deepseek_trainer.training.state import RunState, refuse_other_base

LENGTHS: Final = frozenset({"optimization.maxSteps", "optimization.epochs", "optimization.maxMinutes"})


def checkpoint_to_resume(rank: Rank) -> CheckpointInfo | None:
    """The newest checkpoint.  Until the job has written one of its own, it is the one that resumeFrom asks for.

    Raises ConfigError if it is not this job's to go on from, or was trained beside another base model than the job's.
    """
    is_named = rank.requested.checkpoint.resume_from != "Latest"
    info = _named(rank) if is_named else rank.store.latest()
    if info is None:
        return None
    if rank.learns_beside_base:
        refuse_other_base(rank.base_digest, info, rank.store.vault.name_of)
    if not (is_named or is_own(info)):
        _refuse_unasked(rank, info)
    return info


def changed_settings(rank: Rank, info: CheckpointInfo) -> list[Change]:
    """What the job trains with other settings than those of the checkpoint; nothing where those are not recorded."""
    return legs_of(info)[-1].changed(rank.requested)


def lengthens(rank: Rank, info: CheckpointInfo) -> bool:
    """Whether the job differs from the one that wrote the checkpoint in going on for longer, and in nothing else."""
    changed = changed_settings(rank, info)
    if not changed or {change.path for change in changed} - LENGTHS:
        return False
    fields = {change.path.rpartition(".")[2]: change.before for change in changed}
    now = rank.requested.optimization
    before = OptimizationSpec.model_validate(now.model_dump(by_alias=True) | fields)
    rows = len(rank.prepared.train)
    return Horizon.of(now, rows).goes_beyond(Horizon.of(before, rows))


def is_own(info: CheckpointInfo) -> bool:
    """Whether this job wrote the checkpoint, and not an earlier one of the same name."""
    with telling(info):
        return bool(info.meta["jobUid"] == job_uid())


def _named(rank: Rank) -> CheckpointInfo | None:
    """The checkpoint of the step that resumeFrom names, or one of the job's own after it."""
    resume_from = rank.requested.checkpoint.resume_from
    try:
        newest = rank.store.latest()
    except IntegrityError:
        if attempt() > 1:
            raise
        newest = None  # on the first attempt resumeFrom is the way out of a damaged store
    if newest is None or not is_own(newest):
        rank.store.set_aside(after_step=-1 if resume_from == "None" else int(resume_from))
    return rank.store.latest()


def _refuse_unasked(rank: Rank, info: CheckpointInfo) -> None:
    """Raise ConfigError if the job may not go on unasked from the checkpoint of an earlier job of its name."""
    if lengthens(rank, info) and not _other_base(rank, info):
        return
    writer = f"an earlier job of this name ({info.meta['jobUid']})"
    if changed := [*changed_settings(rank, info), *_other_base(rank, info)]:
        problem = f"the checkpoint of step {info.step} is of {writer} with other settings; now {described(changed)}"
        raise ConfigError(problem, hint=f"change it back; or {_ways_out(info)}")
    if legs_of(info)[-1].settings is None:
        problem = f"the checkpoint of step {info.step} is of {writer}, and its version recorded no settings"
        raise ConfigError(problem, hint=_ways_out(info))
    if info.exported:
        problem = f"{writer} has trained this model to its end, step {info.step}, and exported it"
        raise ConfigError(problem, hint=f"its result is in {rank.paths.export}; to have another one {_ways_out(info)}")


def _other_base(rank: Rank, info: CheckpointInfo) -> list[Change]:
    before = info.meta.get("baseDigest")
    if before in (None, rank.base_digest):
        return []
    name_of = rank.store.vault.name_of
    return [
        Change(
            "SHA-256 of model.base and model.adapter", name_of(before), rank.base_digest and name_of(rank.base_digest)
        )
    ]


def _ways_out(info: CheckpointInfo) -> str:
    return (
        f"set checkpoint.resumeFrom: '{info.step}' to go on from it with the settings of now, or None to start over; "
        "or give the job another name"
    )


def refuse_ended(rank: Rank, info: CheckpointInfo, state: RunState) -> None:
    """Raise ConfigError if a checkpoint of another job and of other settings leaves this job no step to train."""
    leg, changed = legs_of(info)[-1], changed_settings(rank, info)
    horizon = Horizon.of(rank.fitted.optimization, len(rank.prepared.train))
    if is_own(info) or not (changed or leg.settings is None) or not horizon.is_reached(info.step, state.train_seconds):
        return
    raise ConfigError(
        f"the checkpoint of step {info.step} leaves no step to train: the job ends there, too"
        + (f", with {described(changed)}" if changed else ""),
        hint="raise optimization.maxSteps, epochs or maxMinutes; set checkpoint.resumeFrom to an earlier step; or to "
        "None, to start over",
    )
