"""The record of attempts, the claim of a job that never started, and the logs of attempts that failed."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from deepseek_operator.jobs.decide import decide
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import JobStatus, Phase
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.plan import Plan
from support.builders.operator import NOW, SETTINGS, a_job, a_pod, a_quota, a_worker_job, terminated

TWO_READY = Observed(worker_jobs=(a_worker_job(),), pods=(a_pod(0), a_pod(1)), isolated=True)
FAILED = a_worker_job(conditions=("Failed",))


def plan_for(status: JobStatus, observed: Observed, at: float = 0, **spec: Any) -> Plan[JobStatus]:
    return decide(a_job(spec, status), observed, SETTINGS, NOW + timedelta(seconds=at))


def claims(plan: Plan[JobStatus]) -> list[str]:
    return [manifest["metadata"]["name"] for manifest in plan.apply if manifest["kind"] == "PersistentVolumeClaim"]


def failed_pods(attempt: int = 1, code: int = 1) -> tuple[Manifest, ...]:
    return tuple(a_pod(i, "Failed", attempt=attempt, **terminated(code, at=i)) for i in range(2))


def test_an_attempt_is_recorded_from_its_worker_job_to_its_end() -> None:
    status = plan_for(JobStatus(phase=Phase.PENDING), Observed(worker_jobs=(a_worker_job(),))).status
    (made,) = status.attempts
    assert (made.attempt, made.running_time, made.end_time) == (1, None, None)
    status = plan_for(status, TWO_READY, at=60).status
    (runs,) = status.attempts
    assert runs.running_time == NOW + timedelta(seconds=60)
    status = plan_for(status, Observed(worker_jobs=(FAILED,), pods=failed_pods(code=137)), at=90).status
    (ended,) = status.attempts
    assert (ended.start_time, ended.end_time) == (made.start_time, NOW + timedelta(seconds=90))
    assert (ended.node, ended.node_name, ended.exit_code, ended.reason) == (0, "machine-0", 137, "Error")


def test_a_suspended_and_a_finished_attempt_say_so() -> None:
    running = plan_for(JobStatus(phase=Phase.STARTING, attempt=1), TWO_READY).status
    held = plan_for(running, TWO_READY, at=9, suspend=True).status
    assert [(each.reason, each.exit_code) for each in held.attempts] == [("SuspendRequested", None)]
    assert plan_for(held, Observed(), at=30, suspend=True).status.attempts == held.attempts
    done = plan_for(running, replace(TWO_READY, worker_jobs=(a_worker_job(conditions=("Complete",)),)), at=9).status
    assert [(each.reason, each.exit_code) for each in done.attempts] == [("Completed", 0)]


def test_the_last_ten_attempts_are_remembered() -> None:
    status = JobStatus(phase=Phase.RUNNING, attempt=1)
    for attempt in range(1, 15):
        observed = Observed(
            worker_jobs=(a_worker_job(attempt, conditions=("Failed",)),), pods=failed_pods(attempt), isolated=True
        )
        status = plan_for(status, observed, runPolicy={"maxRestarts": 99}).status
        status = status.model_copy(update={"phase": Phase.RUNNING})
    assert [each.attempt for each in status.attempts] == list(range(5, 15))


@pytest.mark.parametrize("attempt", [0, 1, 2, 7])
def test_the_claim_is_made_as_long_as_no_pod_has_started(attempt: int) -> None:
    assert claims(plan_for(JobStatus(phase=Phase.PENDING, attempt=attempt), Observed())) == ["dstj-demo"]


def test_the_claim_of_a_job_that_was_suspended_before_its_first_start_is_made() -> None:
    full = Observed(quotas=(a_quota({"pods": "0"}, {"pods": "0"}),))
    status = plan_for(JobStatus(), Observed(), suspend=True).status
    status = plan_for(status, Observed()).status
    status = plan_for(status, full).status
    status = plan_for(status, full, suspend=True).status
    status = plan_for(status, Observed()).status
    assert status.attempt == 2
    assert claims(plan_for(status, Observed())) == ["dstj-demo"]


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed"])
def test_a_claim_that_vanishes_after_training_began_is_not_made_again(phase: str) -> None:
    begun = a_pod(0, phase, **(terminated(1) if phase == "Failed" else {}))
    status = plan_for(JobStatus(phase=Phase.STARTING, attempt=1), replace(TWO_READY, pods=(begun,))).status
    assert status.start_time == NOW
    held = plan_for(status, Observed(), suspend=True).status
    resumed = plan_for(held, Observed()).status
    plan = plan_for(resumed, Observed(), at=60)
    assert [manifest["kind"] for manifest in plan.apply][-1] == "Job"
    assert claims(plan) == []


def test_pods_that_wait_for_machines_are_no_beginning() -> None:
    waiting = replace(TWO_READY, pods=tuple(a_pod(i, "Pending", machine=None) for i in (0, 1)))
    assert plan_for(JobStatus(phase=Phase.STARTING, attempt=1), waiting).status.start_time is None


def an_attempt_after_failures(failed: int) -> Observed:
    """`failed` attempts whose worker jobs and pods are still there, and one that runs."""
    jobs = tuple(a_worker_job(attempt, conditions=("Failed",)) for attempt in range(1, failed + 1))
    pods = tuple(pod for attempt in range(1, failed + 1) for pod in failed_pods(attempt))
    now = failed + 1
    return Observed(
        worker_jobs=(*jobs, a_worker_job(now)),
        pods=(*pods, a_pod(0, attempt=now), a_pod(1, attempt=now)),
        isolated=True,
    )


@pytest.mark.parametrize(
    ("limit", "deleted"),
    [(None, ["demo-a1", "demo-a2"]), (0, ["demo-a1", "demo-a2", "demo-a3"]), (2, ["demo-a1"]), (9, [])],
)
def test_the_worker_jobs_of_the_last_failed_attempts_are_kept(limit: int | None, deleted: list[str]) -> None:
    policy = {} if limit is None else {"runPolicy": {"failedAttemptsHistoryLimit": limit}}
    plan = plan_for(JobStatus(phase=Phase.RUNNING, attempt=4), an_attempt_after_failures(3), **policy)
    assert [ref.name for ref in plan.delete] == deleted


def test_kept_pods_hold_nothing_up_and_suspension_leaves_them() -> None:
    observed = an_attempt_after_failures(1)
    held = plan_for(JobStatus(phase=Phase.RUNNING, attempt=2), observed, suspend=True)
    assert [ref.name for ref in held.delete] == ["demo-a2"]
    kept = Observed(worker_jobs=observed.worker_jobs[:1], pods=observed.pods[:2])
    status = plan_for(held.status, kept, suspend=True).status
    assert status.phase is Phase.SUSPENDED
    resumed = plan_for(plan_for(status, kept).status, kept)
    assert (resumed.apply[-1]["metadata"]["name"], resumed.delete) == ("demo-a3", ())


def test_an_attempt_with_a_pod_that_may_still_write_is_not_kept() -> None:
    observed = an_attempt_after_failures(1)
    alive = (a_pod(1), *(pod for pod in observed.pods if pod["metadata"]["name"] != "demo-a1-1-xxxxx"))
    plan = plan_for(JobStatus(phase=Phase.RUNNING, attempt=2), replace(observed, pods=alive))
    assert [ref.name for ref in plan.delete] == ["demo-a1"]


@pytest.mark.parametrize(("counted", "deleted"), [("count/jobs.batch", ["demo-a1"]), ("pods", [])])
def test_kept_worker_jobs_go_where_a_quota_counts_objects(counted: str, deleted: list[str]) -> None:
    kept = Observed(
        worker_jobs=(FAILED,), pods=failed_pods(), quotas=(a_quota({counted: "1"}, {counted: "1"}),), isolated=True
    )
    plan = plan_for(JobStatus(phase=Phase.RESTARTING, attempt=2), kept)
    assert plan.status.message.startswith("ResourceQuota 'team' is short of")
    assert [ref.name for ref in plan.delete] == deleted
