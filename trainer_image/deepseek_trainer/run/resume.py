"""Which checkpoint a run goes on from."""

from deepseek_trainer.checkpoints.store import CheckpointInfo
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.run.rank import Rank, attempt, job_uid
from deepseek_trainer.training.state import refuse_other_base


def checkpoint_to_resume(rank: Rank) -> CheckpointInfo | None:
    """The newest checkpoint.  Until the job has written one of its own, it is the one that resumeFrom asks for.

    Raises ConfigError if it was trained beside another base model than the job's.
    """
    info = _requested(rank)
    if info is not None and rank.learns_beside_base:
        refuse_other_base(rank.base_digest, info)
    return info


def _requested(rank: Rank) -> CheckpointInfo | None:
    resume_from = rank.requested.checkpoint.resume_from
    if resume_from == "Latest":
        return rank.store.latest()
    try:
        newest = rank.store.latest()
    except IntegrityError:
        if attempt() > 1:
            raise
        newest = None  # on the first attempt resumeFrom is the way out of a damaged store
    if newest is None or newest.meta["jobUid"] != job_uid():
        rank.store.set_aside(after_step=-1 if resume_from == "None" else int(resume_from))
    return rank.store.latest()
