"""Jobs into whose pods somebody has put containers, which may never end."""

from datetime import timedelta
from typing import Any

import pytest

from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import JobStatus, Phase
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.plan import Plan
from support.builders.operator import NOW, SETTINGS, a_job, a_pod, a_worker_job, beside, terminated, training

RUNNING = JobStatus(phase=Phase.RUNNING, attempt=1)


def a_pass(status: JobStatus, observed: Observed, at: float = 0, **spec: Any) -> Plan[JobStatus]:
    return JOBS.decide(a_job(spec, status), observed, SETTINGS, NOW + timedelta(seconds=at))


def seen(*pods: Manifest, conditions: tuple[str, ...] = ()) -> Observed:
    return Observed(worker_jobs=(a_worker_job(conditions=conditions),), pods=pods, isolated=True)


def ended(index: int, code: int, *, phase: str = "Running", at: int = 0) -> Manifest:
    """A pod whose trainer ended and whose sidecar runs on."""
    return beside(a_pod(index, phase, ready=False, **terminated(code, at=at)))


def test_a_job_has_succeeded_when_all_trainers_have() -> None:
    observed = seen(ended(0, 0), ended(1, 0))
    assert a_pass(RUNNING, observed, at=14).status.phase is Phase.RUNNING, "sidecars may end with the trainer"
    plan = a_pass(RUNNING, observed, at=15)
    assert (plan.status.phase, plan.status.is_finished) == (Phase.SUCCEEDED, True)
    assert plan.status.replica_statuses.nodes.succeeded == 2


def test_one_trainer_that_still_works_is_waited_for() -> None:
    plan = a_pass(RUNNING, seen(ended(0, 0), beside(training(a_pod(1)))), at=600)
    assert plan.status.phase is Phase.RUNNING


def test_the_machines_of_a_finished_job_are_freed_after_its_end_was_written() -> None:
    observed = seen(ended(0, 0), ended(1, 0))
    done = a_pass(RUNNING, observed, at=15)
    assert (done.delete, done.look_again, done.status.replica_statuses.nodes.active) == ((), 0.0, 2)
    assert a_pass(done.status, observed, at=29).delete == (), "a pod that is seen late may have ended"
    freeing = a_pass(done.status, observed, at=30)
    assert [ref.name for ref in freeing.delete] == ["demo-a1"]
    assert freeing.status.phase is Phase.SUCCEEDED
    gone = a_pass(freeing.status, Observed(), at=45)
    assert (gone.status.phase, gone.status.replica_statuses.nodes.active, gone.delete) == (Phase.SUCCEEDED, 0, ())


def test_a_trainer_that_failed_fails_the_attempt_whatever_runs_beside_it() -> None:
    observed = seen(ended(0, 1), beside(training(a_pod(1))))
    assert a_pass(RUNNING, observed, at=14).status.phase is Phase.STARTING
    failed = a_pass(RUNNING, observed, at=15)
    assert (failed.status.phase, failed.status.restarts.job) == (Phase.RESTARTING, 1)
    stopping = a_pass(failed.status, observed, at=15)
    assert [ref.name for ref in stopping.delete] == ["demo-a1"], "its pods would keep their machines"
    assert a_pass(failed.status, Observed(), at=30).apply[-1]["metadata"]["name"] == "demo-a2"


def test_a_failure_that_no_retry_can_help_ends_the_job_and_frees_its_machines() -> None:
    observed = seen(ended(0, 64), ended(1, 75))
    failed = a_pass(RUNNING, observed, at=15)
    assert (failed.status.phase, failed.status.is_finished) == (Phase.FAILED, True)
    assert [ref.name for ref in a_pass(failed.status, observed, at=30).delete] == ["demo-a1"]


def test_a_sidecar_that_fails_after_the_trainers_succeeded_spoils_nothing() -> None:
    crash = {"terminated": {"exitCode": 137, "reason": "Error", "finishedAt": NOW.isoformat()}}
    pods = [beside(a_pod(i, "Failed", **terminated(0)), crash) for i in (0, 1)]
    assert a_pass(RUNNING, seen(*pods, conditions=("Failed",))).status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("suspend", [False, True])
def test_what_ended_well_has_ended_also_for_a_suspended_job(suspend: bool) -> None:
    assert a_pass(RUNNING, seen(ended(0, 0), ended(1, 0)), at=15, suspend=suspend).status.phase is Phase.SUCCEEDED


def test_a_job_with_sidecars_is_running_when_its_trainers_are() -> None:
    observed = seen(*(beside(training(a_pod(i, ready=False))) for i in (0, 1)))
    plan = a_pass(JobStatus(phase=Phase.STARTING, attempt=1), observed)
    assert (plan.status.phase, plan.status.replica_statuses.nodes.ready) == (Phase.RUNNING, 2)


def test_a_finished_job_without_pods_is_not_looked_at() -> None:
    done = a_pass(RUNNING, seen(conditions=("Complete",))).status
    assert (done.phase, done.replica_statuses.nodes.active) == (Phase.SUCCEEDED, 0)
