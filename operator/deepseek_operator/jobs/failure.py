"""Why an attempt ended, and whether another one can help.

The functions are pure.  They read pods and the conditions of the worker Job.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from deepseek_operator.jobs.labels import index_of
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.pods import lost_since
from deepseek_trainer.contract import failure as contract
from deepseek_trainer.contract.errors import OUT_OF_MEMORY, PEER_GONE, STORAGE
from deepseek_trainer.contract.names import NOT_RETRYABLE, ExitCode

# Failures within this time before the last one belong to the same incident.  gloo and NCCL notice a dead peer within
# their timeout, and the kubelet stops a pod within its grace period.
INCIDENT: Final = timedelta(minutes=5)

_LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)

# The values of pod.status.reason where a pod did not fail by itself.  They come from the kubelet, from a node that is
# shut down, from the scheduler and from the node controller.
_DISRUPTIONS: Final = frozenset({"Evicted", "NodeShutdown", "Terminated", "Preempting", "Preempted", "NodeLost"})

_CONSEQUENCES: Final[dict[int | None, int]] = {ExitCode.TRY_AGAIN: 3, ExitCode.STOPPED: 6}
_KILLED: Final = 137  # 128 + SIGKILL


class Verdict(StrEnum):
    RETRY = "Retry"  # the next attempt counts towards runPolicy.maxRestarts
    RETRY_FREE = "RetryFree"  # the machine was lost or needed by others, so the next attempt does not count
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
    stopping: bool = False  # its pod was being deleted, as all are once one has failed
    time: datetime = _LONG_AGO

    @property
    def verdict(self) -> Verdict:
        if self.exit_code in NOT_RETRYABLE or self.reason == "PodFailurePolicy":
            return Verdict.GIVE_UP
        if self.disrupted or self.exit_code == ExitCode.STOPPED:
            return Verdict.RETRY_FREE
        return Verdict.RETRY

    def __str__(self) -> str:
        where = [f"node {self.node}"] if self.node is not None else []
        where += [f"rank {self.rank}"] if self.rank is not None else []
        code = f" with exit code {self.exit_code}" if self.exit_code is not None else ""
        last_line = self.message.strip().splitlines()[-1] if self.message.strip() else ""
        return f"{' '.join(where) or 'the worker job'} failed{code} ({self.reason})" + (
            f": {last_line}" if last_line else ""
        )


def failure_of(worker_job: Manifest, pods: Iterable[Manifest]) -> AttemptFailure:
    """The failure that caused the end of an attempt, among those of its last minutes."""
    failures = [failure for pod in pods if (failure := _pod_failure(pod)) is not None]
    if not failures:
        condition = job_condition(worker_job, "Failed") or {}
        return AttemptFailure(condition.get("reason", "Unknown"), condition.get("message", "the pods are gone"))
    last = max(failure.time for failure in failures)
    return min((f for f in failures if f.time + INCIDENT >= last), key=lambda f: (_suspicion(f), f.time, f.node or 0))


def _suspicion(failure: AttemptFailure) -> int:
    """How likely another failure caused this one: 0 is a cause, 6 that of a pod that was asked to stop."""
    if failure.exit_code in NOT_RETRYABLE:
        return 0
    if failure.disrupted:
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
    terminated = min(_terminations(status), key=lambda t: str(t.get("finishedAt", "")), default=None)
    lost = lost_since(pod)
    if terminated is None and status.get("phase") != "Failed" and lost is None:
        return None
    disruption = ("NodeLost", "the machine no longer answers") if lost else _disruption(status)
    terminated = terminated or {}
    words = contract.Failure.read(terminated.get("message") or "")
    return AttemptFailure(
        reason=words.reason
        or (disruption and disruption[0])
        or terminated.get("reason")
        or status.get("reason")
        or "Error",
        message=words.message or (disruption and disruption[1]) or status.get("message") or "",
        rank=words.rank,
        node=index_of(pod),
        exit_code=terminated.get("exitCode"),
        pod_name=pod["metadata"]["name"],
        node_name=pod.get("spec", {}).get("nodeName"),
        disrupted=disruption is not None,
        stopping="deletionTimestamp" in pod["metadata"],
        time=_time(terminated.get("finishedAt") or lost),
    )


def _terminations(status: Mapping[str, Any]) -> Iterator[Manifest]:
    """How the containers of a pod ended, of those that ended with an error."""
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        terminated = container.get("state", {}).get("terminated")
        if terminated and terminated.get("exitCode"):
            yield terminated


def _disruption(status: Mapping[str, Any]) -> tuple[str, str] | None:
    """The reason and message of an eviction, a preemption or a lost node."""
    for condition in status.get("conditions", ()):
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return condition.get("reason", "DisruptionTarget"), condition.get("message", "")
    reason = status.get("reason", "")
    return (reason, status.get("message", "")) if reason in _DISRUPTIONS else None


def _time(text: str | None) -> datetime:
    try:
        return datetime.fromisoformat(text) if text else _LONG_AGO
    except ValueError:
        return _LONG_AGO
