"""How long the operator leaves a worker job alone."""

import pytest

from deepseek_operator.jobs.decide import decide
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import JobStatus, Phase
from deepseek_operator.objects.observed import Manifest
from support.builders.operator import NOW, SETTINGS, a_job, a_pod, a_worker_job

WAITING = [a_pod(index, "Pending", machine=None) for index in (0, 1)]


def pause(pods: list[Manifest], created: str) -> float | None:
    worker = a_worker_job()
    worker["metadata"]["creationTimestamp"] = created
    job = a_job(status=JobStatus(phase=Phase.STARTING, attempt=1))
    return decide(job, Observed(worker_jobs=(worker,), pods=tuple(pods), isolated=True), SETTINGS, NOW).look_again


@pytest.mark.parametrize(
    ("created", "seconds"),
    [
        pytest.param("2026-01-02T03:04:05Z", 15, id="new"),
        pytest.param("2026-01-02T03:00:05Z", 60, id="four-minutes"),
        pytest.param("2026-01-01T03:04:05Z", 300, id="a-day"),
    ],
)
def test_a_job_whose_pods_wait_for_machines_is_looked_at_ever_less_often(created: str, seconds: float) -> None:
    old = [pod | {"metadata": pod["metadata"] | {"creationTimestamp": created}} for pod in WAITING]
    assert pause(old, "2026-01-01T00:00:00Z") == seconds, "a queue may have held the worker job for long"
    assert pause([], created) == seconds


def test_a_job_whose_pods_leave_is_looked_at_soon_because_nobody_tells_of_those_without_a_machine() -> None:
    job = a_job({"suspend": True}, JobStatus(phase=Phase.RUNNING, attempt=1))
    plan = decide(job, Observed(worker_jobs=(a_worker_job(),), pods=tuple(WAITING), isolated=True), SETTINGS, NOW)
    assert (plan.status.phase, plan.look_again) == (Phase.SUSPENDING, SETTINGS.progress_interval_s)


@pytest.mark.parametrize("pods", [[a_pod(), a_pod(1)], [a_pod(0, "Pending"), WAITING[1]]])
def test_a_job_with_a_pod_on_a_machine_is_looked_at_for_its_progress(pods: list[Manifest]) -> None:
    assert pause(pods, "2026-01-01T03:04:05Z") == SETTINGS.progress_interval_s
