"""The record of the last attempts in the status.  The functions are pure."""

from datetime import datetime
from typing import Any, Final

from deepseek_operator.jobs.failure import AttemptFailure
from deepseek_operator.jobs.status import AttemptStatus, JobStatus

MAX_ATTEMPTS: Final = 10
COMPLETED: Final = "Completed"


def current(status: JobStatus) -> AttemptStatus | None:
    """The record of the current attempt, if its worker job has been seen."""
    last = status.attempts[-1] if status.attempts else None
    return last if last and last.attempt == status.attempt else None


def seen(status: JobStatus, made: datetime, now: datetime, *, all_run: bool) -> JobStatus:
    """The status with a record of the current attempt, whose worker job was made at the time `made`."""
    attempt = current(status) or AttemptStatus(attempt=status.attempt, start_time=made)
    if all_run and attempt.running_time is None and attempt.end_time is None:
        attempt = attempt.model_copy(update={"running_time": now})
    return _with(status, attempt)


def failed(status: JobStatus, failure: AttemptFailure, ran: datetime | None, now: datetime) -> JobStatus:
    """The status in which the current attempt has ended by `failure`.  All of its pods ran since `ran`, if ever."""
    known = {"node": failure.node, "node_name": failure.node_name, "exit_code": failure.exit_code}
    return _ended(status, now, failure.reason[:256], ran, **known)


def completed(status: JobStatus, ran: datetime | None, now: datetime) -> JobStatus:
    """The status in which the current attempt has trained to its end."""
    return _ended(status, now, COMPLETED, ran, exit_code=0)


def stopped(status: JobStatus, reason: str, now: datetime) -> JobStatus:
    """The status in which the current attempt was ended on purpose, unless it had ended before."""
    attempt = current(status)
    return status if attempt is None or attempt.end_time else _ended(status, now, reason, None)


def _ended(status: JobStatus, now: datetime, reason: str, ran: datetime | None, **known: Any) -> JobStatus:
    attempt = current(status) or AttemptStatus(attempt=status.attempt, start_time=now)
    running = attempt.running_time or (ran and max(ran, attempt.start_time))
    end = {"end_time": attempt.end_time or now, "running_time": running, "reason": reason, **known}
    return _with(status, attempt.model_copy(update=end))


def _with(status: JobStatus, attempt: AttemptStatus) -> JobStatus:
    others = tuple(each for each in status.attempts if each.attempt != attempt.attempt)
    return status.model_copy(update={"attempts": (*others, attempt)[-MAX_ATTEMPTS:]})
