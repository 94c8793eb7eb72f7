"""The outcome of one pass, and the status that reports it.

Every condition follows from the phase, the reason and the message.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from deepseek_operator.api.conditions import Condition, merged
from deepseek_operator.jobs.status import ConditionType, JobStatus, LastFailure, Phase
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.objects.observed import Notice
from deepseek_operator.objects.plan import Plan
from deepseek_trainer.contract.errors import STORAGE
from deepseek_trainer.contract.foreign import one_line

MAX_MESSAGE: Final = 4096  # [characters]

JobPlan = Plan[JobStatus]

_ON_THE_WAY: Final = frozenset({Phase.PENDING, Phase.QUEUED, Phase.STARTING, Phase.RESTARTING, Phase.SUSPENDING})
_SETTLED: Final = frozenset({Phase.RUNNING, Phase.SUSPENDED, Phase.SUCCEEDED})


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass found: a reason for machines and a sentence for people."""

    phase: Phase
    reason: str
    message: str
    is_warning: bool = False
    accepted: bool = True  # False: a person must correct the job file or its profile
    isolation: tuple[str, str, str] | None = None  # the status, reason and message of NetworkIsolated; None: as before


def plan_with(outcome: Outcome, job: TrainingJob, status: JobStatus, now: datetime) -> JobPlan:
    """A plan that only reports: `status` with the phase, message and conditions of `outcome`."""
    message = one_line(outcome.message, MAX_MESSAGE)
    status = status.model_copy(
        update={
            "observed_generation": job.generation,
            "phase": outcome.phase,
            "message": message,
            "conditions": merged(status.conditions, _conditions(job, status, outcome, message, now)),
        }
    )
    return Plan(status, notices=_notices(job.status, status, outcome, message))


def running_seconds(status: JobStatus, now: datetime) -> int:
    """The time so far during which all pods ran.  Waiting for machines, queued and suspended time does not count."""
    current = (now - status.running_since).total_seconds() if status.running_since else 0
    return status.running_seconds + max(0, int(current))


def clocked(status: JobStatus, now: datetime, *, all_run: bool) -> JobStatus:
    """The status with its clock running or stopped."""
    if all_run:
        return status.model_copy(update={"running_since": status.running_since or now})
    return status.model_copy(update={"running_since": None, "running_seconds": running_seconds(status, now)})


def _conditions(
    job: TrainingJob, status: JobStatus, outcome: Outcome, message: str, now: datetime
) -> tuple[Condition, ...]:
    def condition(type_: str, state: str, reason: str, text: str) -> Condition:
        return Condition(
            type=type_,
            status=state,
            observed_generation=job.generation,
            last_transition_time=now,
            reason=reason,
            message=text,
        )

    def by_phase(type_: str, holds: bool, *, always_explain: bool = False) -> Condition:
        return condition(type_, str(bool(holds)), outcome.reason, message if holds or always_explain else "")

    phase = outcome.phase
    made = [
        condition("Accepted", *(("True", "Valid", "") if outcome.accepted else ("False", outcome.reason, message))),
        by_phase(ConditionType.RUNNING, phase is Phase.RUNNING, always_explain=True),
        by_phase(ConditionType.SUSPENDED, phase is Phase.SUSPENDED),
        by_phase(ConditionType.RESTARTING, _is_restarting(status, phase)),
        by_phase(ConditionType.COMPLETE, phase is Phase.SUCCEEDED),
        by_phase(ConditionType.FAILED, phase is Phase.FAILED and outcome.accepted),
        by_phase(ConditionType.READY, phase in _SETTLED and outcome.accepted, always_explain=True),
        by_phase(ConditionType.RECONCILING, phase in _ON_THE_WAY and outcome.accepted),
        by_phase(ConditionType.STALLED, phase is Phase.FAILED or not outcome.accepted),
        condition(ConditionType.CHECKPOINT_READY, *_checkpoint(status)),
    ]
    if failure := _storage_failure(job.status, status):
        made.append(condition(ConditionType.STORAGE_FAILING, "True", "VolumeFailed", failure.message))
    elif status.is_true(ConditionType.STORAGE_FAILING) and _has_stored(job.status, status, phase):
        made.append(condition(ConditionType.STORAGE_FAILING, "False", "Written", ""))
    if outcome.isolation is not None:
        made.append(condition(ConditionType.NETWORK_ISOLATED, *outcome.isolation))
    return tuple(made)


def _storage_failure(before: JobStatus, after: JobStatus) -> LastFailure | None:
    """The failure that this pass found, if the volume caused it."""
    failure = after.last_failure
    return failure if failure and failure != before.last_failure and failure.reason == STORAGE else None


def _has_stored(before: JobStatus, after: JobStatus, phase: Phase) -> bool:
    """Whether the volume has taken a checkpoint since the last pass, or everything that the job had to write."""
    return phase is Phase.SUCCEEDED or after.last_checkpoint != before.last_checkpoint


def _is_restarting(status: JobStatus, phase: Phase) -> bool:
    """Whether an attempt failed and not all pods of the next one are ready."""
    if phase in {Phase.PENDING, Phase.QUEUED, Phase.STARTING}:
        return status.is_true(ConditionType.RESTARTING)
    return phase is Phase.RESTARTING


def _checkpoint(status: JobStatus) -> tuple[str, str, str]:
    checkpoint = status.last_checkpoint
    if checkpoint is None:
        return "False", "NoCheckpoint", ""
    return "True", "Sealed" if checkpoint.sealed else "Unsealed", f"the run can continue from step {checkpoint.step}"


def _notices(before: JobStatus, after: JobStatus, outcome: Outcome, message: str) -> tuple[Notice, ...]:
    notices = []
    if failure := _storage_failure(before, after):
        notices.append(Notice(ConditionType.STORAGE_FAILING, failure.message, "Warning"))
    running = before.condition(ConditionType.RUNNING)
    if (before.phase, running and running.reason) != (outcome.phase, outcome.reason):
        notices.append(Notice(outcome.reason, message, "Warning" if outcome.is_warning else "Normal"))
    return tuple(notices)
