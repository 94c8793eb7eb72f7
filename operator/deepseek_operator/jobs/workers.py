"""What the pods of one attempt say together.  The functions are pure."""

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from deepseek_operator.jobs.failure import LONG_AGO, job_condition, time_of
from deepseek_operator.jobs.labels import attempt_of, index_of
from deepseek_operator.jobs.worker_job import TRAIN
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.pods import (
    containers_of,
    end_of,
    has_started,
    has_succeeded,
    is_finished,
    is_running,
)

_NOT_YET: Final = datetime.max.replace(tzinfo=UTC)

Index = int | str


def all_run(pods: Iterable[Manifest], num_nodes: int) -> bool:
    """Whether every node of the attempt has a pod that runs or is done, and one of them still runs."""
    pods = tuple(pods)
    going = {_index(pod) for pod in pods if is_running(pod) or has_succeeded(pod, TRAIN)}
    return len(going) >= num_nodes and any(is_running(pod) for pod in pods)


def all_ran_since(pods: Iterable[Manifest], num_nodes: int) -> datetime | None:
    """The first time at which every node had a pod that ran, as the pods tell it now.  None: there was none."""
    times = [(_index(pod), *_times(pod)) for pod in pods if has_started(pod)]
    for moment in sorted(start for _, start, _ in times):
        if len({index for index, start, end in times if start <= moment <= end}) >= num_nodes:
            return moment
    return None


def have_trained(pods: Iterable[Manifest], num_nodes: int) -> bool:
    """Whether the trainer of every node ended well, whatever other containers do."""
    return len({_index(pod) for pod in pods if has_succeeded(pod, TRAIN)}) >= num_nodes


def outlived(pods: Iterable[Manifest]) -> tuple[Manifest, ...]:
    """The pods whose trainer has ended, and of which other containers run on."""
    return tuple(pod for pod in pods if not is_finished(pod) and end_of(pod, TRAIN))


def last_end(pods: Iterable[Manifest]) -> datetime | None:
    """When the last trainer ended in a pod that does not end with it."""
    return max((time_of((end_of(pod, TRAIN) or {}).get("finishedAt")) for pod in outlived(pods)), default=None)


def first_failure(pods: Iterable[Manifest]) -> datetime | None:
    """When the first trainer ended with an error in a pod that does not end with it."""
    ends = (end_of(pod, TRAIN) or {} for pod in outlived(pods))
    return min((time_of(end.get("finishedAt")) for end in ends if end.get("exitCode")), default=None)


def last_failed(jobs: Iterable[Manifest], pods: Iterable[Manifest], limit: int) -> tuple[Manifest, ...]:
    """The newest `limit` of the worker jobs that have failed and whose pods have all ended."""
    alive = {attempt_of(pod) for pod in pods if not is_finished(pod)}
    over = [job for job in jobs if job_condition(job, "Failed") and attempt_of(job) not in alive]
    return tuple(sorted(over, key=attempt_of, reverse=True)[:limit])


def _index(pod: Manifest) -> Index:
    index = index_of(pod)
    return str(pod["metadata"]["name"]) if index is None else index


def _times(pod: Manifest) -> tuple[datetime, datetime]:
    """When the first container of a pod started, and when its last one ended."""
    found = (container.get("state", {}) for container in containers_of(pod))
    states = [
        state.get("running") or state["terminated"] for state in found if {"running", "terminated"} & state.keys()
    ]
    start = min((time_of(state.get("startedAt")) for state in states), default=LONG_AGO)
    ends = [time_of(state["finishedAt"]) for state in states if state.get("finishedAt")]
    return start, max(ends) if ends and is_finished(pod) else _NOT_YET
