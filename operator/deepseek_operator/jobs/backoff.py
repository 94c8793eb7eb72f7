"""The pauses between attempts.  The functions are pure.

A pause is written into the status before anything waits for it, so that a restart of the operator changes nothing.
"""

from datetime import datetime, timedelta
from typing import Final

from deepseek_operator.jobs.attempts import current
from deepseek_operator.jobs.status import JobStatus
from deepseek_operator.settings import Settings

RAN_WELL: Final = timedelta(minutes=10)


def doubling(first_s: float, longest_s: float, times: int) -> float:
    """`first_s` doubled so many `times`, at most `longest_s`."""
    return min(longest_s, first_s * 2.0 ** min(times, 32))


def paused(status: JobStatus, settings: Settings, now: datetime) -> JobStatus:
    """The status with the next, longer pause before the next try.  An attempt that ran well begins anew with 10 s."""
    before = 0 if ran_well(status, now) else status.back_offs
    pause = timedelta(seconds=doubling(settings.backoff_s, settings.longest_backoff_s, before))
    return status.model_copy(update={"back_offs": before + 1, "next_attempt_time": now + pause})


def unpaused(status: JobStatus) -> JobStatus:
    """The status of a job that a person starts again."""
    return status.model_copy(update={"back_offs": 0, "next_attempt_time": None})


def pause_left(status: JobStatus, now: datetime) -> float:
    """The seconds until the pause ends, or 0."""
    until = status.next_attempt_time
    return max(0.0, (until - now).total_seconds()) if until else 0.0


def ran_well(status: JobStatus, now: datetime) -> bool:
    """Whether the current attempt ran for ten minutes, or wrote a checkpoint."""
    attempt, checkpoint = current(status), status.last_checkpoint
    if attempt is None or attempt.running_time is None:
        return False
    wrote = bool(checkpoint and checkpoint.time and checkpoint.time > attempt.start_time)
    return wrote or now - attempt.running_time >= RAN_WELL
