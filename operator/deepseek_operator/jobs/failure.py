"""Why an attempt ended, and whether another one can help.

The functions are pure.  They read pods and the conditions of the worker Job.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from deepseek_operator.api.conditions import MAX_WORD
from deepseek_operator.jobs.labels import index_of
from deepseek_operator.jobs.worker_job import PREPARE, TRAIN
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.pods import containers_of, has_started, is_evicted, lost_since
from deepseek_trainer.contract import failure as contract
from deepseek_trainer.contract.errors import OUT_OF_MEMORY, PEER_GONE, STORAGE
from deepseek_trainer.contract.foreign import named, one_line
from deepseek_trainer.contract.names import NOT_RETRYABLE, ExitCode

# Failures within this time before the last one belong to the same incident.  gloo and NCCL notice a dead peer within
# their timeout, and the kubelet stops a pod within its grace period.
INCIDENT: Final = timedelta(minutes=5)

LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)

_LIMIT_FIX: Final = (
    "raise the limit of ephemeral-storage or memory in trainer.resourcesPerNode or the profile, or the size of the "
    "emptyDir that is named"
)
_OWN: Final = frozenset({PREPARE, TRAIN})  # the containers that the operator has put into the pod
_CONSEQUENCES: Final[dict[int | None, int]] = {ExitCode.TRY_AGAIN: 3, ExitCode.STOPPED: 6}
_KILLED: Final = 137  # 128 + SIGKILL


class Verdict(StrEnum):
    RETRY = "Retry"  # the next attempt counts towards runPolicy.maxRestarts
    RETRY_FREE = "RetryFree"  # the machine was lost or needed by others; counts towards runPolicy.maxDisruptions
    NOT_PLACED = "NotPlaced"  # not all pods have run at the same time, so nothing counts
    GIVE_UP = "GiveUp"  # the next attempt would fail in the same way


@dataclass(frozen=True, slots=True)
class AttemptFailure:
    """What a pod said about its failure, and what the cluster knows besides."""

    reason: str
    message: str
    rank: int | None = None  # the global rank that failed first, by its launcher's word
    node: int | None = None  # the index of the pod
    exit_code: int | None = None
    pod_name: str | None = None
    node_name: str | None = None
    disrupted: bool = False
    rejected: bool = False  # its machine refused the pod before a container had started
    over_limit: bool = False  # its machine ended the pod for using more than its own limits
    placed: bool = True  # all pods of the attempt have run at the same time
    stopping: bool = False  # its pod was being deleted, as all are once one has failed
    time: datetime = LONG_AGO

    @property
    def verdict(self) -> Verdict:
        if self.exit_code in NOT_RETRYABLE or self.reason == "PodFailurePolicy":
            return Verdict.GIVE_UP
        if self.rejected or not self.placed:
            return Verdict.NOT_PLACED
        if self.disrupted or (self.exit_code == ExitCode.STOPPED and not self.over_limit):
            return Verdict.RETRY_FREE
        return Verdict.RETRY

    def __str__(self) -> str:
        where = [f"node {self.node}"] if self.node is not None else []
        where += [f"rank {self.rank}"] if self.rank is not None else []
        code = f" with exit code {self.exit_code}" if self.exit_code is not None else ""
        how = f"was rejected by {self.node_name}" if self.rejected else f"failed{code}"
        last_line = self.message.strip().splitlines()[-1] if self.message.strip() else ""
        return f"{' '.join(where) or 'the worker job'} {how} ({self.reason})" + (f": {last_line}" if last_line else "")


def failure_of(worker_job: Manifest, pods: Iterable[Manifest]) -> AttemptFailure:
    """The failure that caused the end of an attempt, among those of its last minutes."""
    failures = [failure for pod in pods if (failure := _pod_failure(pod)) is not None]
    if not failures:
        condition = job_condition(worker_job, "Failed") or {}
        return AttemptFailure(condition.get("reason", "Unknown"), condition.get("message", "the pods are gone"))
    last = max(failure.time for failure in failures)
    recent = (f for f in failures if f.time == LONG_AGO or f.time + INCIDENT >= last)  # nobody tells when: perhaps now
    return min(recent, key=lambda f: (_suspicion(f), f.time, f.node or 0))


def rejections(pods: Iterable[Manifest]) -> list[AttemptFailure]:
    """The pods that their machines refused."""
    return [failure for pod in pods if (failure := _pod_failure(pod)) is not None and failure.rejected]


def _suspicion(failure: AttemptFailure) -> int:
    """How likely another failure caused this one: 0 is a cause, 6 that of a pod that was asked to stop."""
    if failure.exit_code in NOT_RETRYABLE:
        return 0
    if failure.disrupted or failure.rejected or failure.over_limit:
        return 1
    if failure.reason in (STORAGE, OUT_OF_MEMORY):
        return 2  # its peers end with the same exit code, but other reasons
    if failure.reason == PEER_GONE:
        return 5
    if failure.stopping and failure.exit_code == _KILLED and failure.reason != "OOMKilled":
        return 4  # it was killed because it did not stop in time
    return _CONSEQUENCES.get(failure.exit_code, 2)


def job_condition(worker_job: Manifest, type_: str) -> Manifest | None:
    """The condition of a batch/v1 Job, if it is True."""
    conditions = worker_job.get("status", {}).get("conditions", ())
    return next((c for c in conditions if c["type"] == type_ and c["status"] == "True"), None)


def _pod_failure(pod: Manifest) -> AttemptFailure | None:
    status = pod.get("status", {})
    ends = sorted(_ends(pod), key=lambda end: str(end.get("finishedAt", "")))
    lost = lost_since(pod)
    if not ends and status.get("phase") != "Failed" and lost is None:
        return None
    terminated = ends[0] if ends else {}
    words = contract.Failure.read(terminated.get("message") or "")
    disruption = ("NodeLost", "the machine no longer answers") if lost else _disruption(status)
    cause = disruption or _beside(pod, terminated)
    is_over_limit = disruption is None and is_evicted(pod)
    known = ("Evicted", f"{status.get('message', '').strip()} {_LIMIT_FIX}") if is_over_limit else ("", "")
    reasons = (known[0], words.reason, cause and cause[0], status.get("reason"), terminated.get("reason"))
    return AttemptFailure(
        reason=one_line(next(filter(None, reasons), "Error"), MAX_WORD),
        message=known[1] or words.message or (cause and cause[1]) or status.get("message") or "",
        rank=words.rank,
        node=index_of(pod),
        exit_code=terminated.get("exitCode"),
        pod_name=pod["metadata"]["name"],
        node_name=pod.get("spec", {}).get("nodeName"),
        disrupted=disruption is not None,
        rejected=disruption is None and not is_over_limit and _is_rejected(pod),
        over_limit=is_over_limit,
        stopping="deletionTimestamp" in pod["metadata"],
        time=time_of(terminated.get("finishedAt") or lost),
    )


def _ends(pod: Manifest) -> list[Manifest]:
    """How the operator's own containers of a pod ended, of those that ended with an error."""
    own = (each for each in containers_of(pod) if each.get("name", TRAIN) in _OWN)
    ends = (container.get("state", {}).get("terminated") for container in own)
    return [end for end in ends if end and end.get("exitCode")]


def _beside(pod: Manifest, terminated: Manifest) -> tuple[str, str] | None:
    """The reason and message where a container failed that others have put into the pod, and none of the operator's."""
    for container in containers_of(pod):
        end = container.get("state", {}).get("terminated") or {}
        if end.get("exitCode") and not terminated:
            said = f"container {named(container.get('name'))}, which somebody added to the pod, ended"
            return "ContainerFailed", f"{said} with {end['exitCode']} ({end.get('reason', 'Error')})"
    return None


def _is_rejected(pod: Manifest) -> bool:
    """Whether the machine refused the pod: for its devices, its resources, its own condition, or as too full."""
    status = pod.get("status", {})
    is_refused = status.get("phase") == "Failed" and bool(status.get("reason")) and not has_started(pod)
    return is_refused and "deletionTimestamp" not in pod["metadata"]


def _disruption(status: Mapping[str, Any]) -> tuple[str, str] | None:
    """The reason and message of an eviction, a preemption or a shutdown, as the condition tells it."""
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return condition.get("reason", "DisruptionTarget"), condition.get("message", "")
    return None


def time_of(text: str | None) -> datetime:
    """The time that a manifest tells, or a time long ago if it tells none."""
    try:
        return datetime.fromisoformat(text) if text else LONG_AGO
    except ValueError:
        return LONG_AGO
