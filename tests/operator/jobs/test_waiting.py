"""Jobs that wait for machines: what counts, what is given back, and what the deadline measures."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from deepseek_operator.jobs.decide import decide
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import JobStatus, Phase, Restarts
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.plan import Plan
from support.builders.operator import NOW, SETTINGS, a_job, a_pod, a_warning, a_worker_job, beside, terminated, training

PEER_GONE = '{"reason": "PeerGone"}'
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2 nodes"}
STARTING = JobStatus(phase=Phase.STARTING, attempt=1)
HOUR = 3600
PLACED = training(a_pod(0))
UNPLACED = a_pod(1, "Pending", machine=None, conditions=(UNSCHEDULABLE,))
PULLING = a_pod(1, "Pending", containerStatuses=[{"name": "trainer", "state": {"waiting": {"reason": "ErrImagePull"}}}])
PREPARING = a_pod(1, "Pending", initContainerStatuses=[{"name": "prepare", "state": {"running": {}}}])


def plan_for(status: JobStatus, observed: Observed, at: float = 0, **spec: Any) -> Plan[JobStatus]:
    return decide(a_job(spec, status), observed, SETTINGS, NOW + timedelta(seconds=at))


def seen(*pods: Manifest, uid: str = "", conditions: tuple[str, ...] = ()) -> Observed:
    job = a_worker_job(conditions=conditions)
    if uid:
        job["metadata"]["uid"] = uid
    return Observed(worker_jobs=(job,), pods=pods, isolated=True)


def reason_of(plan: Plan[JobStatus]) -> str:
    running = plan.status.condition("Running")
    assert running is not None
    return running.reason


@pytest.mark.parametrize("code", [1, 75, 137, 143])
@pytest.mark.parametrize("peer", [UNPLACED, PULLING], ids=["no-machine", "image-pull"])
def test_a_failure_before_all_pods_have_run_counts_for_nothing(peer: Manifest, code: int) -> None:
    gave_up = a_pod(0, "Failed", **terminated(code, PEER_GONE if code == 75 else ""))
    plan = plan_for(STARTING, seen(gave_up, peer, conditions=("Failed",)), runPolicy={"maxRestarts": 0})
    assert (plan.status.phase, plan.status.not_placed) == (Phase.RESTARTING, 1)
    assert plan.status.restarts == Restarts()
    assert reason_of(plan) == "NotPlaced"
    assert plan.status.next_attempt_time == NOW + timedelta(seconds=10)


def test_a_failure_after_all_pods_have_run_counts_even_if_a_peer_lost_its_machine_since() -> None:
    both = plan_for(STARTING, seen(PLACED, training(a_pod(1)))).status
    failed = a_pod(0, "Failed", **terminated(75, PEER_GONE))
    plan = plan_for(both, seen(failed, UNPLACED, conditions=("Failed",)), at=60)
    assert plan.status.restarts == Restarts(job=1)


def test_pods_tell_that_they_ran_together_where_nobody_looked() -> None:
    def lived(index: int, start: int, end: int) -> Manifest:
        pod = a_pod(index, "Failed", **terminated(1, at=end))
        state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        state["startedAt"] = (NOW + timedelta(seconds=start)).isoformat()
        return pod

    together = seen(lived(0, 0, 20), lived(1, 10, 20), conditions=("Failed",))
    assert plan_for(STARTING, together, at=30).status.restarts == Restarts(job=1)
    one_after_the_other = seen(lived(0, 0, 20), lived(1, 30, 40), conditions=("Failed",))
    assert plan_for(STARTING, one_after_the_other, at=60).status.not_placed == 1


def test_a_part_placed_job_gives_its_machines_back_after_a_bounded_wait() -> None:
    observed = seen(PLACED, UNPLACED)
    assert plan_for(STARTING, observed, at=299).status.phase is Phase.STARTING
    plan = plan_for(STARTING, observed, at=601)
    assert (plan.status.phase, plan.status.attempt, plan.delete) == (Phase.PENDING, 1, ())
    assert "there are not enough machines for all" in plan.status.message
    assert "0/2 nodes" in plan.status.message
    then = plan_for(plan.status, observed, at=601)
    assert [ref.name for ref in then.delete] == ["demo-a1"]
    assert then.status.not_placed == 1, "it is counted once"
    assert plan_for(plan.status, Observed(), at=605).apply == (), "the other job gets them"
    assert plan_for(plan.status, Observed(), at=611).apply[-1]["metadata"]["name"] == "demo-a1"


@pytest.mark.parametrize(
    "pods",
    [
        pytest.param((UNPLACED, a_pod(0, "Pending", machine=None)), id="holds-nothing"),
        pytest.param((PLACED, PULLING), id="all-placed"),
        pytest.param((PLACED, training(a_pod(1))), id="runs"),
    ],
)
def test_only_what_holds_a_part_of_its_machines_gives_them_back(pods: tuple[Manifest, ...]) -> None:
    assert plan_for(STARTING, seen(*pods), at=HOUR).status.phase in {Phase.STARTING, Phase.RUNNING}


def first_to_let_go(uid: str, back_offs: int = 0) -> int:
    status = STARTING.model_copy(update={"back_offs": back_offs})
    waits = range(0, 3 * HOUR, 5)
    return next(
        at for at in waits if plan_for(status, seen(PLACED, UNPLACED, uid=uid), at=at).status.phase is Phase.PENDING
    )


def test_two_jobs_that_each_hold_a_part_let_go_at_different_times() -> None:
    times = {first_to_let_go(f"uid-{number}") for number in range(8)}
    assert len(times) > 4
    assert all(300 <= at <= 605 for at in times)


def test_the_wait_grows_with_each_try_to_at_most_two_hours() -> None:
    waits = [first_to_let_go("uid", back_offs) for back_offs in (0, 1, 2, 9)]
    assert waits == sorted(waits)
    assert waits[0] < waits[1] < waits[2] < waits[3] <= 2 * HOUR


def test_a_job_that_gets_its_machines_in_between_keeps_them() -> None:
    given_up = plan_for(STARTING, seen(PLACED, UNPLACED), at=601).status
    late = given_up.model_copy(update={"next_attempt_time": NOW})  # the operator was away for the pause
    assert plan_for(late, seen(PLACED, training(a_pod(1))), at=700).status.phase is Phase.RUNNING


@pytest.mark.parametrize("peer", [UNPLACED, PULLING], ids=["no-machine", "image-pull"])
def test_the_deadline_counts_no_waiting(peer: Manifest) -> None:
    limits = {"runPolicy": {"activeDeadlineSeconds": HOUR}}
    waiting = plan_for(STARTING, seen(PLACED, peer), **limits).status
    assert (waiting.running_since, waiting.running_seconds) == (None, 0)
    status = plan_for(waiting, seen(a_pod(0, "Pending", machine=None), peer), at=100 * HOUR, **limits).status
    assert status.phase is not Phase.FAILED
    assert status.running_seconds == 0


def test_the_clock_runs_while_all_pods_run_preparation_included() -> None:
    limits = {"runPolicy": {"activeDeadlineSeconds": HOUR}}
    status = plan_for(STARTING, seen(PLACED, PREPARING), **limits).status
    assert (status.phase, status.running_since) == (Phase.STARTING, NOW)
    lost = plan_for(status, seen(PLACED, UNPLACED), at=60, **limits).status
    assert (lost.running_since, lost.running_seconds) == (None, 60)
    back = plan_for(lost, seen(PLACED, training(a_pod(1))), at=600, **limits).status
    late = plan_for(back, seen(PLACED, training(a_pod(1))), at=600 + HOUR - 60, **limits)
    assert "ran for 3600 s" in late.status.message


def test_pauses_between_attempts_are_no_running_time() -> None:
    status = plan_for(STARTING, seen(PLACED, training(a_pod(1)))).status
    failed = seen(*(a_pod(i, "Failed", **terminated(1)) for i in (0, 1)), conditions=("Failed",))
    status = plan_for(status, failed, at=60).status
    assert (status.running_since, status.running_seconds) == (None, 60)


QUEUED = {"kueue.x-k8s.io/queue-name": "team-b"}


def queued(plan_labels: dict[str, str], status: JobStatus, observed: Observed, **spec: Any) -> Plan[JobStatus]:
    return decide(a_job(spec, status, labels=plan_labels), observed, SETTINGS, NOW)


def test_a_queued_worker_job_follows_its_job_to_another_queue() -> None:
    old = Observed(worker_jobs=(a_worker_job(suspend=True, queue="team-a"),), isolated=True)
    plan = queued(QUEUED, JobStatus(phase=Phase.QUEUED, attempt=1), old)
    assert (plan.status.phase, plan.delete) == (Phase.PENDING, ())
    then = queued(QUEUED, plan.status, old)
    assert [ref.name for ref in then.delete] == ["demo-a1"]
    made = queued(QUEUED, then.status, Observed())
    assert made.apply[-1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-b"
    assert made.status.restarts == Restarts()


def test_the_status_names_the_queue_in_which_the_worker_job_is() -> None:
    observed = Observed(worker_jobs=(a_worker_job(suspend=True, queue="team-b"),), isolated=True)
    assert "'team-b'" in queued(QUEUED, JobStatus(phase=Phase.QUEUED, attempt=1), observed).status.message


def test_a_worker_job_with_pods_stays_in_its_queue() -> None:
    job = a_worker_job(queue="team-a")
    running = Observed(worker_jobs=(job,), pods=(PLACED, training(a_pod(1))), isolated=True)
    assert queued(QUEUED, JobStatus(phase=Phase.RUNNING, attempt=1), running).status.phase is Phase.RUNNING


@pytest.mark.parametrize("wanted", [{}, {"kueue.x-k8s.io/queue-name": "team-a"}])
def test_a_queue_that_somebody_else_has_given_the_worker_job_is_left_alone(wanted: dict[str, str]) -> None:
    job = a_worker_job(suspend=True, queue="team-a")
    job["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] = "low"
    plan = queued(wanted, JobStatus(phase=Phase.QUEUED, attempt=1), Observed(worker_jobs=(job,), isolated=True))
    assert plan.status.phase is Phase.QUEUED
    assert "'team-a'" in plan.status.message


def test_a_worker_job_without_pods_is_made_anew_when_its_priority_changes() -> None:
    job = a_worker_job()
    job["spec"]["template"] = {"spec": {"priorityClassName": "missing"}}
    refused = a_warning("FailedCreate", "no PriorityClass with name missing was found")
    observed = Observed(worker_jobs=(job,), warnings=(refused,), isolated=True)
    plan = queued({}, STARTING, observed, scheduling={"priorityClassName": "high"})
    assert (plan.status.phase, reason_of(plan)) == (Phase.PENDING, "WorkerJobOutdated")
    same = queued({}, STARTING, observed, scheduling={"priorityClassName": "missing"})
    assert same.status.phase is Phase.STARTING


def test_a_job_whose_last_pod_was_replaced_is_not_taken_for_part_placed_while_it_leaves() -> None:
    leaving = PLACED | {"metadata": PLACED["metadata"] | {"deletionTimestamp": "2026-01-02T03:04:05Z"}}
    assert plan_for(STARTING, seen(leaving, UNPLACED), at=HOUR).status.phase is Phase.STARTING


def test_a_sidecar_that_runs_is_no_trainer_that_runs() -> None:
    waiting = beside(replace_trainer(a_pod(1)))
    plan = plan_for(STARTING, seen(PLACED, waiting))
    assert plan.status.replica_statuses.nodes.ready == 1
    assert plan.status.phase is Phase.STARTING


def replace_trainer(pod: Manifest) -> Manifest:
    trainer = {"name": "trainer", "ready": False, "state": {"waiting": {"reason": "PodInitializing"}}}
    return pod | {"status": pod["status"] | {"containerStatuses": [trainer]}}


def test_an_outlook_on_the_next_pass_is_never_shortened_by_a_clock_that_stands_still() -> None:
    status = STARTING.model_copy(update={"running_seconds": HOUR - 1})
    plan = plan_for(status, replace(seen(PLACED, PULLING)), runPolicy={"activeDeadlineSeconds": HOUR})
    assert plan.look_again == SETTINGS.progress_interval_s
