"""Puts the progress that rank 0 reports into the status, within the sizes that the API server accepts."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from deepseek_operator.api.conditions import Condition, merged
from deepseek_operator.jobs.labels import attempt_of, index_of
from deepseek_operator.jobs.status import JobStatus, LastCheckpoint, Metric, TrainerStatus
from deepseek_operator.jobs.worker_job import TRAIN
from deepseek_trainer.contract.findings import findings
from deepseek_trainer.contract.foreign import one_line
from deepseek_trainer.contract.progress import Progress

METRICS: Final = ("loss", "eval_loss", "learning_rate", "tokens_per_second")


def with_progress(status: JobStatus, progress: Progress | None, interval_s: float, now: datetime) -> JobStatus:
    """The status with the progress in it.

    A new finding, stage, checkpoint or restart is reported at once, a new step alone once per `interval_s`, because
    each write is work for the API server.
    """
    if progress is None:
        return status
    status = _with_findings(status, progress, now)
    trainer, checkpoint = trainer_status(progress), _checkpoint(progress) or status.last_checkpoint
    restarts = status.restarts.model_copy(update={"in_place": progress.restart_count or 0})
    before = status.trainer_status
    urgent = (checkpoint, restarts) != (status.last_checkpoint, status.restarts)
    if before is not None and not urgent and not _is_due(before, trainer, interval_s, now):
        return status
    heard = trainer.model_copy(update={"last_updated_time": now})
    return status.model_copy(update={"trainer_status": heard, "last_checkpoint": checkpoint, "restarts": restarts})


def _with_findings(status: JobStatus, progress: Progress, now: datetime) -> JobStatus:
    """The status with a condition for each finding of the run.  The others stay, also over attempts."""
    made = [
        Condition(
            type=found.type,
            status=found.status,
            observed_generation=status.observed_generation,
            last_transition_time=now,
            reason=found.reason,
            message=one_line(found.message),
        )
        for found in findings(progress)
    ]
    return status.model_copy(update={"conditions": merged(status.conditions, made)}) if made else status


def last_words(pods: Iterable[Mapping[str, Any]], attempt: int) -> Progress | None:
    """The last progress of an attempt that is over, which node 0 leaves in its termination message if it can."""
    of_node_0 = (pod for pod in pods if attempt_of(pod) == attempt and index_of(pod) == 0)
    ends = sorted((end for pod in of_node_0 for end in _ends(pod)), key=lambda end: str(end.get("finishedAt", "")))
    left = (Progress.read(end.get("message") or "") for end in reversed(ends))
    return next((progress for progress in left if progress and progress.stage is not None), None)


def _ends(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    statuses = pod.get("status", {}).get("containerStatuses", ())
    states = (each.get("state", {}) for each in statuses if each.get("name", TRAIN) == TRAIN)
    return [state["terminated"] for state in states if state.get("terminated")]


def _is_due(before: TrainerStatus, after: TrainerStatus, interval_s: float, now: datetime) -> bool:
    heard = before.last_updated_time
    if after.model_copy(update={"last_updated_time": heard}) == before:
        return False  # lastUpdatedTime stays and shows for how long there was nothing new
    return after.stage != before.stage or heard is None or (now - heard).total_seconds() >= interval_s


def trainer_status(progress: Progress) -> TrainerStatus:
    step, max_steps = progress.step, progress.max_steps
    metrics = ((name, _decimal(getattr(progress, name))) for name in METRICS)
    return TrainerStatus(
        progress_percentage=min(100, 100 * step // max_steps) if step is not None and max_steps else None,
        estimated_remaining_seconds=progress.eta_seconds,
        metrics=tuple(Metric(name=name, value=value) for name, value in metrics if value is not None),
        stage=progress.stage[:63] if progress.stage is not None else None,
        step=step,
        max_steps=max_steps,
        epoch=_decimal(progress.epoch),
    )


def _checkpoint(progress: Progress) -> LastCheckpoint | None:
    """The checkpoint, or None if its time is no time or a text of it is too long."""
    if progress.last_checkpoint is None:
        return None
    try:
        return LastCheckpoint.model_validate(progress.last_checkpoint.model_dump())
    except (ValidationError, OverflowError):
        return None


def _decimal(number: float | None) -> str | None:
    return None if number is None else f"{number:.6g}"
