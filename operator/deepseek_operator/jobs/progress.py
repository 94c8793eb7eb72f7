"""From what rank 0 answers on /progress to the status.

The answer comes from a pod that runs a customer's code: each value is taken only if it has the
right type and size, so that nothing in it can make a status that the API server refuses.
"""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final

from pydantic import ValidationError

from deepseek_operator.jobs.labels import attempt_of, index_of
from deepseek_operator.jobs.status import JobStatus, LastCheckpoint, Metric, TrainerStatus
from deepseek_operator.objects.pods import legible

MAX_COUNT: Final = 2**53  # JSON numbers are exact up to here
_METRICS: Final = {  # name in the status: name in the answer
    "loss": "loss",
    "eval_loss": "evalLoss",
    "learning_rate": "learningRate",
    "tokens_per_second": "tokensPerSecond",
}


def with_progress(status: JobStatus, answer: Mapping[str, Any] | None, interval_s: float, now: datetime) -> JobStatus:
    """`status` with the progress in it.

    A new step alone is written once per `interval_s`, because each write costs the API server; a
    new stage, checkpoint or restart at once.
    """
    if answer is None:
        return status
    trainer, checkpoint = trainer_status(answer), _checkpoint(answer) or status.last_checkpoint
    restarts = status.restarts.model_copy(update={"in_place": _count(answer.get("restartCount")) or 0})
    before = status.trainer_status
    urgent = (checkpoint, restarts) != (status.last_checkpoint, status.restarts)
    if before is not None and not urgent and not _is_due(before, trainer, interval_s, now):
        return status
    heard = trainer.model_copy(update={"last_updated_time": now})
    return status.model_copy(update={"trainer_status": heard, "last_checkpoint": checkpoint, "restarts": restarts})


def last_words(pods: Iterable[Mapping[str, Any]], attempt: int) -> Mapping[str, Any] | None:
    """The last progress of an attempt that is over: node 0 leaves it in its termination message, if it could."""
    of_node_0 = (pod for pod in pods if attempt_of(pod) == attempt and index_of(pod) == 0)
    ends = sorted((end for pod in of_node_0 for end in _ends(pod)), key=lambda end: str(end.get("finishedAt", "")))
    told = (_object(end.get("message") or "") for end in reversed(ends))
    return next((words for words in told if words and "stage" in words), None)


def _ends(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    states = (container.get("state", {}) for container in pod.get("status", {}).get("containerStatuses", ()))
    return [state["terminated"] for state in states if state.get("terminated")]


def _object(text: str) -> Mapping[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _is_due(before: TrainerStatus, after: TrainerStatus, interval_s: float, now: datetime) -> bool:
    heard = before.last_updated_time
    if after.model_copy(update={"last_updated_time": heard}) == before:
        return False  # nothing new: lastUpdatedTime shows for how long
    return after.stage != before.stage or heard is None or (now - heard).total_seconds() >= interval_s


def trainer_status(answer: Mapping[str, Any]) -> TrainerStatus:
    step, max_steps = _count(answer.get("step")), _count(answer.get("maxSteps"))
    stage, epoch = answer.get("stage"), _decimal(answer.get("epoch"))
    return TrainerStatus(
        progress_percentage=min(100, 100 * step // max_steps) if step is not None and max_steps else None,
        estimated_remaining_seconds=_count(answer.get("etaSeconds")),
        metrics=tuple(
            Metric(name=name, value=value) for name, key in _METRICS.items() if (value := _decimal(answer.get(key)))
        ),
        stage=legible(stage)[:63] if isinstance(stage, str) else None,
        step=step,
        max_steps=max_steps,
        epoch=epoch,
    )


def _checkpoint(answer: Mapping[str, Any]) -> LastCheckpoint | None:
    told = answer.get("lastCheckpoint")
    if not isinstance(told, Mapping):
        return None
    sizes = {key: _count(told[key]) for key in ("step", "sizeBytes") if key in told}
    try:
        return LastCheckpoint.model_validate({**told, **sizes})
    except (ValidationError, OverflowError):
        return None


def _count(value: object) -> int | None:
    """A number of things or seconds, rounded down; None if it is not one."""
    number = _number(value)
    return int(number) if number is not None and 0 <= number <= MAX_COUNT else None


def _decimal(value: object) -> str | None:
    number = _number(value)
    return None if number is None else f"{number:.6g}"


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # neither NaN nor infinite
