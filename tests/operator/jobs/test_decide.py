"""The decision, one row per thing that can be seen."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from deepseek_operator.api.conditions import Condition
from deepseek_operator.jobs.decide import decide, invalid, refused
from deepseek_operator.jobs.finish import finished
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import JobStatus, LastCheckpoint, Phase, Restarts
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.plan import Cause, Plan, Refusal
from deepseek_trainer.contract.progress import Checkpoint, Progress, RecordCounts
from support.builders.operator import (
    NOW,
    SETTINGS,
    a_job,
    a_lost_pod,
    a_pod,
    a_profile,
    a_quota,
    a_warning,
    a_worker_job,
    terminated,
)

TWO_PODS = (a_pod(0), a_pod(1))
NO_ROOM = a_quota({"pods": "3"}, {"pods": "2"})
FAILED_JOB = a_worker_job(conditions=("Failed",))
LOST = a_lost_pod(1)
PEER_GONE = a_pod(0, "Failed", **terminated(75, '{"reason": "PeerGone"}'))
EXIT = {code: (a_pod(0, "Failed", **terminated(code)),) for code in (1, 64, 143)}

NO_PODS = Observed(worker_jobs=(a_worker_job(),))
TWO_READY = Observed(worker_jobs=(a_worker_job(),), pods=TWO_PODS)
RETRYABLE = Observed(worker_jobs=(FAILED_JOB,), pods=EXIT[1])
HOPELESS = Observed(worker_jobs=(FAILED_JOB,), pods=EXIT[64])
COMPLETE = Observed(worker_jobs=(a_worker_job(conditions=("Complete",)),))


def a_status(phase: Phase | None, attempt: int = 1, **fields: Any) -> JobStatus:
    return JobStatus(phase=phase, attempt=attempt, **fields)


def plan_for(
    status: JobStatus, observed: Observed, *, seconds: int = 0, profile: Any = None, labels: Any = None, **spec: Any
) -> Plan:
    meta = {"labels": labels} if labels else {}
    return decide(
        a_job(spec, status, **meta), replace(observed, profile=profile), SETTINGS, NOW + timedelta(seconds=seconds)
    )


def phase_reason_attempt(plan: Plan) -> tuple[str, str, int]:
    running = plan.status.condition("Running")
    assert running is not None
    return str(plan.status.phase), running.reason, plan.status.attempt


def kinds(plan: Plan) -> list[str]:
    return [manifest["kind"] for manifest in plan.apply]


def deleted(plan: Plan) -> list[str]:
    return [ref.name for ref in plan.delete]


@pytest.mark.parametrize(
    ("before", "observed", "after"),
    [
        pytest.param(a_status(None, 0), Observed(), ("Pending", "CreatingWorkers", 0), id="new"),
        pytest.param(
            a_status(Phase.PENDING, 0), NO_PODS, ("Starting", "PodsStarting", 1), id="job-seen-attempt-counted"
        ),
        pytest.param(
            a_status(Phase.STARTING),
            Observed(worker_jobs=(a_worker_job(suspend=True),)),
            ("Queued", "WaitingForQueue", 1),
            id="queued",
        ),
        pytest.param(
            a_status(Phase.STARTING),
            Observed(worker_jobs=(a_worker_job(),), pods=TWO_PODS[:1]),
            ("Starting", "PodsStarting", 1),
            id="half-ready",
        ),
        pytest.param(a_status(Phase.STARTING), TWO_READY, ("Running", "AllNodesReady", 1), id="ready"),
        pytest.param(
            a_status(Phase.RUNNING),
            Observed(worker_jobs=(a_worker_job(),), pods=(a_pod(0), a_pod(1, "Succeeded"))),
            ("Running", "AllNodesReady", 1),
            id="one-pod-is-done-first",
        ),
        pytest.param(
            a_status(Phase.RUNNING),
            Observed(worker_jobs=(a_worker_job(conditions=("FailureTarget",)),), pods=TWO_PODS),
            ("Starting", "PodsStopping", 1),
            id="failing",
        ),
        pytest.param(
            a_status(Phase.RUNNING),
            Observed(worker_jobs=(a_worker_job(),), pods=(a_pod(0), LOST)),
            ("Starting", "NodeLost", 1),
            id="machine-lost",
        ),
        pytest.param(
            a_status(Phase.STARTING),
            Observed(worker_jobs=(a_worker_job(conditions=("FailureTarget",)),), pods=(PEER_GONE, LOST)),
            ("Restarting", "AttemptFailed", 2),
            id="machine-lost-and-the-group-broken",
        ),
        pytest.param(
            a_status(Phase.RESTARTING, 2),
            Observed(worker_jobs=(a_worker_job(conditions=("FailureTarget",)),), pods=(PEER_GONE, LOST)),
            ("Restarting", "CreatingWorkers", 2),
            id="attempt-after-a-lost-machine",
        ),
        pytest.param(
            a_status(Phase.RESTARTING, 2),
            Observed(worker_jobs=(a_worker_job(),), pods=(LOST, a_lost_pod(0))),
            ("Restarting", "PodsLeaving", 2),
            id="a-whole-group-behind-a-broken-network-may-go-on",
        ),
        pytest.param(
            a_status(Phase.STARTING),
            Observed(worker_jobs=(a_worker_job(),), pods=(), warnings=(a_warning("FailedCreate", "exceeded quota"),)),
            ("Starting", "QuotaExceeded", 1),
            id="blocked",
        ),
        pytest.param(a_status(None, 0), Observed(quotas=(NO_ROOM,)), ("Pending", "QuotaExceeded", 0), id="no-room"),
        pytest.param(
            a_status(Phase.RESTARTING, 2),
            Observed(worker_jobs=(FAILED_JOB,), pods=EXIT[1], quotas=(NO_ROOM,)),
            ("Pending", "QuotaExceeded", 2),
            id="no-room-for-the-next-attempt",
        ),
        pytest.param(
            a_status(Phase.STARTING),
            Observed(
                worker_jobs=(a_worker_job(),),
                pods=TWO_PODS[:1],
                warnings=(a_warning("FailedCreate", "exceeded quota"),),
            ),
            ("Pending", "QuotaExceeded", 1),
            id="half-is-given-back",
        ),
        pytest.param(a_status(Phase.RUNNING), COMPLETE, ("Succeeded", "Completed", 1), id="complete"),
        pytest.param(a_status(Phase.RUNNING), RETRYABLE, ("Restarting", "AttemptFailed", 2), id="retry"),
        pytest.param(
            a_status(Phase.RUNNING),
            Observed(worker_jobs=(FAILED_JOB,), pods=EXIT[143]),
            ("Restarting", "AttemptFailed", 2),
            id="retry-free",
        ),
        pytest.param(a_status(Phase.RUNNING), HOPELESS, ("Failed", "NotRetryable", 1), id="give-up"),
        pytest.param(
            a_status(Phase.RUNNING, restarts=Restarts(job=3)),
            RETRYABLE,
            ("Failed", "RestartBudgetExhausted", 1),
            id="budget-used",
        ),
        pytest.param(
            a_status(Phase.RUNNING, restarts=Restarts(job=3)),
            Observed(worker_jobs=(FAILED_JOB,), pods=EXIT[143]),
            ("Restarting", "AttemptFailed", 2),
            id="evictions-have-no-budget",
        ),
        pytest.param(a_status(Phase.RUNNING), Observed(), ("Restarting", "WorkerJobDeleted", 2), id="lost"),
        pytest.param(a_status(Phase.RESTARTING, 2), RETRYABLE, ("Restarting", "CreatingWorkers", 2), id="next-attempt"),
        pytest.param(
            a_status(Phase.RESTARTING, 2),
            Observed(pods=TWO_PODS),
            ("Restarting", "PodsLeaving", 2),
            id="old-pods-first",
        ),
        pytest.param(a_status(Phase.SUSPENDED), Observed(), ("Pending", "Resuming", 2), id="resumed"),
        pytest.param(
            a_status(Phase.SUSPENDED, 0), Observed(), ("Pending", "Resuming", 1), id="resumed-before-it-ever-ran"
        ),
        pytest.param(a_status(Phase.FAILED, 0), Observed(), ("Pending", "CreatingWorkers", 0), id="spec-was-repaired"),
    ],
)
def test_what_is_seen_decides(before: JobStatus, observed: Observed, after: tuple[str, str, int]) -> None:
    assert phase_reason_attempt(plan_for(before, observed)) == after


@pytest.mark.parametrize(
    ("observed", "phase", "gone"),
    [
        pytest.param(Observed(), "Suspended", [], id="nothing-left"),
        pytest.param(TWO_READY, "Suspending", ["demo-a1"], id="pods-are-told"),
        pytest.param(Observed(pods=TWO_PODS), "Suspending", [], id="pods-are-leaving"),
        pytest.param(RETRYABLE, "Suspending", ["demo-a1"], id="failed-meanwhile"),
    ],
)
def test_suspension_lasts_until_no_pod_is_left(observed: Observed, phase: str, gone: list[str]) -> None:
    plan = plan_for(a_status(Phase.RUNNING), observed, suspend=True)
    assert (plan.status.phase, deleted(plan)) == (phase, gone)
    assert plan.status.is_true("Suspended") is (phase == "Suspended")
    assert plan.status.restarts == Restarts()


@pytest.mark.parametrize("lost", [LOST, a_lost_pod(1, evicted=True)], ids=["silent", "evicted-since"])
def test_a_lost_machine_is_named_and_costs_no_restart(lost: Manifest) -> None:
    plan = plan_for(
        a_status(Phase.STARTING),
        Observed(worker_jobs=(a_worker_job(conditions=("FailureTarget",)),), pods=(PEER_GONE, lost)),
    )
    failure = plan.status.last_failure
    assert failure is not None
    assert (failure.reason, failure.node, failure.node_name) == ("NodeLost", 1, "machine-1")
    assert (plan.status.restarts.job, plan.status.restarts.disruption) == (0, 1)


def test_the_only_pod_of_a_job_is_never_taken_for_lost_for_good() -> None:
    plan = plan_for(
        a_status(Phase.RESTARTING, 2),
        Observed(worker_jobs=(a_worker_job(),), pods=(a_lost_pod(0),)),
        trainer={"numNodes": 1},
    )
    assert phase_reason_attempt(plan)[1] == "PodsLeaving"


def test_a_finished_worker_job_wins_over_suspension() -> None:
    plan = plan_for(a_status(Phase.RUNNING), COMPLETE, suspend=True)
    assert plan.status.phase is Phase.SUCCEEDED


def test_counters_are_written_before_the_next_worker_job_is_made() -> None:
    plan = plan_for(a_status(Phase.RUNNING), RETRYABLE)
    assert (plan.apply, plan.delete, plan.look_again) == ((), (), 0.0)
    assert plan.status.restarts == Restarts(job=1)
    then = plan_for(plan.status, RETRYABLE, seconds=10)
    assert then.apply[-1]["metadata"]["name"] == "demo-a2"
    assert deleted(then) == [], "the logs of the last failed attempt are kept"


def test_an_attempt_without_a_status_is_counted_from_what_exists() -> None:
    assert plan_for(JobStatus(), Observed(worker_jobs=(a_worker_job(7),))).status.attempt == 7


def test_somebody_elses_job_with_our_labels_is_left_alone() -> None:
    stranger = a_worker_job()
    stranger["metadata"]["ownerReferences"] = []
    plan = plan_for(a_status(Phase.SUSPENDING), Observed(worker_jobs=(stranger,)), suspend=True)
    assert (plan.status.phase, plan.delete) == (Phase.SUSPENDED, ())


def test_somebody_elses_pod_with_our_labels_does_not_hold_the_job_up() -> None:
    stranger = a_pod()
    stranger["metadata"]["ownerReferences"] = [
        {"kind": "ReplicaSet", "name": "demo-a1", "uid": "?", "controller": True}
    ]
    assert (
        phase_reason_attempt(plan_for(a_status(Phase.RESTARTING, 2), Observed(pods=(stranger,))))[1]
        == "CreatingWorkers"
    )


def test_a_policy_that_vanished_is_made_again_while_pods_run() -> None:
    plan = plan_for(a_status(Phase.RUNNING), replace(TWO_READY, isolated=False))
    assert kinds(plan) == ["ServiceAccount", "NetworkPolicy", "Service"]
    assert plan_for(a_status(Phase.RUNNING), replace(TWO_READY, isolated=True)).apply == ()


@pytest.mark.parametrize(
    ("isolation", "isolated", "status", "reason"),
    [
        ("Isolated", True, "Unknown", "PolicyApplied"),
        ("Isolated", False, "False", "PolicyMissing"),
        ("Unmanaged", False, "False", "Unmanaged"),
    ],
)
def test_isolation_is_never_claimed_beyond_what_is_known(
    isolation: str, isolated: bool, status: str, reason: str
) -> None:
    observed = replace(TWO_READY, isolated=isolated)
    plan = plan_for(a_status(Phase.RUNNING), observed, network={"isolation": isolation})
    condition = plan.status.condition("NetworkIsolated")
    assert condition is not None
    assert (condition.status, condition.reason) == (status, reason)


def test_the_deadline_counts_time_with_pods_only() -> None:
    limits = {"runPolicy": {"activeDeadlineSeconds": 100}}
    queued = plan_for(a_status(Phase.PENDING), Observed(worker_jobs=(a_worker_job(suspend=True),)), **limits)
    assert queued.status.running_since is None
    running = plan_for(queued.status, TWO_READY, seconds=1000, **limits)
    assert running.status.running_since == NOW + timedelta(seconds=1000)
    held = plan_for(running.status, Observed(), seconds=1060, suspend=True, **limits)
    assert (held.status.running_since, held.status.running_seconds) == (None, 60)


def test_no_time_runs_before_there_are_pods_and_between_those_of_two_attempts() -> None:
    limits = {"runPolicy": {"activeDeadlineSeconds": 100}}
    no_pods = plan_for(a_status(Phase.PENDING), NO_PODS, **limits)
    assert phase_reason_attempt(no_pods) == ("Starting", "PodsStarting", 1)
    assert (no_pods.status.running_since, no_pods.status.start_time) == (None, None)
    later = plan_for(no_pods.status, NO_PODS, seconds=1000, **limits)
    assert (phase_reason_attempt(later), later.delete) == (("Starting", "PodsStarting", 1), ())
    before = a_status(Phase.RESTARTING, attempt=2, running_since=NOW)
    next_one = plan_for(before, Observed(worker_jobs=(a_worker_job(2),)), seconds=30, **limits)
    assert (next_one.status.running_since, next_one.status.running_seconds) == (None, 30)


def test_a_job_whose_time_is_up_fails_when_its_pods_are_gone() -> None:
    limits = {"runPolicy": {"activeDeadlineSeconds": 100}}
    running = a_status(Phase.RUNNING, running_since=NOW)
    stopping = plan_for(running, TWO_READY, seconds=100, **limits)
    assert (stopping.status.is_finished, deleted(stopping)) == (False, ["demo-a1"])
    over = plan_for(stopping.status, Observed(), seconds=130, **limits)
    assert phase_reason_attempt(over) == ("Failed", "DeadlineExceeded", 1)
    assert over.status.completion_time == NOW + timedelta(seconds=130)


def test_the_next_look_is_never_after_the_deadline() -> None:
    running = a_status(Phase.RUNNING, running_since=NOW)
    plan = plan_for(
        running,
        TWO_READY,
        seconds=95,
        runPolicy={"activeDeadlineSeconds": 100},
    )
    assert plan.look_again == 5


def test_a_missing_profile_waits_for_its_author() -> None:
    trainer = {"image": None, "profile": "h100"}
    missing = plan_for(a_status(None, 0), Observed(), trainer=trainer)
    accepted = missing.status.condition("Accepted")
    assert accepted is not None
    assert (accepted.status, accepted.reason, missing.apply) == ("False", "ProfileNotFound", ())
    assert missing.look_again is not None
    found = plan_for(missing.status, Observed(), trainer=trainer, profile=a_profile())
    assert found.status.is_true("Accepted")
    assert kinds(found)[-1] == "Job"


@pytest.mark.parametrize(("gpus", "processes"), [(8, 1), ("8", 2), ("0", 1)])
def test_a_profile_with_another_number_of_gpus_than_processes_is_refused(gpus: Any, processes: int) -> None:
    profile = a_profile(resourcesPerNode={"limits": {"nvidia.com/gpu": gpus}})
    trainer = {"image": None, "profile": "h100", "numProcPerNode": processes, "numNodes": 1}
    plan = plan_for(a_status(None, 0), Observed(), trainer=trainer, profile=profile)
    assert plan.apply == ()
    assert phase_reason_attempt(plan) == ("Pending", "ProfileMismatch", 0)
    assert plan.status.is_true("Stalled")
    wanted = f"must equal nvidia.com/gpu of TrainingProfile 'h100', which is {gpus!r}, not {processes}"
    assert wanted in plan.status.message


@pytest.mark.parametrize(
    "own", [{"numProcPerNode": 8}, {"numProcPerNode": 1, "resourcesPerNode": {"limits": {"cpu": 4}}}]
)
def test_a_profile_whose_gpus_the_job_uses_or_replaces_is_taken(own: dict[str, Any]) -> None:
    profile = a_profile(resourcesPerNode={"limits": {"nvidia.com/gpu": 8}})
    trainer = {"image": None, "profile": "h100", "numNodes": 1, **own}
    plan = plan_for(a_status(None, 0), Observed(), trainer=trainer, profile=profile)
    assert kinds(plan)[-1] == "Job"


def test_a_profile_that_vanished_does_not_disturb_a_running_job() -> None:
    observed = replace(TWO_READY, isolated=False)
    plan = plan_for(a_status(Phase.RUNNING), observed, trainer={"image": None, "profile": "h100"})
    assert (plan.status.phase, plan.apply) == (Phase.RUNNING, ())


def test_kueue_labels_reach_the_worker_job_and_the_message() -> None:
    queue = {"kueue.x-k8s.io/queue-name": "team-a"}
    plan = plan_for(a_status(None, 0), Observed(), labels=queue)
    assert plan.apply[-1]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    queued = plan_for(plan.status, Observed(worker_jobs=(a_worker_job(suspend=True, queue="team-a"),)), labels=queue)
    assert "'team-a'" in queued.status.message


def test_the_last_failure_names_where_and_why() -> None:
    failure = plan_for(a_status(Phase.RUNNING), RETRYABLE).status.last_failure
    assert failure is not None
    assert (failure.attempt, failure.node, failure.node_name, failure.exit_code) == (1, 0, "machine-0", 1)


@pytest.mark.parametrize(
    ("phase", "ready", "reconciling", "stalled"),
    [
        (Phase.STARTING, "False", "True", "False"),
        (Phase.RUNNING, "True", "False", "False"),
        (Phase.SUCCEEDED, "True", "False", "False"),
        (Phase.FAILED, "False", "False", "True"),
    ],
)
def test_conditions_speak_kstatus(phase: Phase, ready: str, reconciling: str, stalled: str) -> None:
    seen = {
        Phase.STARTING: NO_PODS,
        Phase.RUNNING: TWO_READY,
        Phase.SUCCEEDED: COMPLETE,
        Phase.FAILED: HOPELESS,
    }
    status = plan_for(a_status(Phase.STARTING), seen[phase]).status
    states = {condition.type: condition.status for condition in status.conditions}
    assert (states["Ready"], states["Reconciling"], states["Stalled"]) == (ready, reconciling, stalled)


def test_a_restart_is_over_when_all_pods_are_ready_again() -> None:
    status = plan_for(a_status(Phase.RUNNING), RETRYABLE).status
    assert status.is_true("Restarting")
    second = a_worker_job(2)
    status = plan_for(status, Observed(worker_jobs=(second,), pods=(a_pod(0, attempt=2),))).status
    assert status.is_true("Restarting")
    status = plan_for(status, Observed(worker_jobs=(second,), pods=(a_pod(0, attempt=2), a_pod(1, attempt=2)))).status
    assert not status.is_true("Restarting")


def test_a_checkpoint_becomes_a_condition() -> None:
    status = a_status(Phase.RUNNING, last_checkpoint=LastCheckpoint(step=500, sealed=True))
    condition = plan_for(status, TWO_READY).status.condition("CheckpointReady")
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", "Sealed")
    assert "500" in condition.message


FULL = "cannot write /work: No space left on device"
FULL_VOLUME = (a_pod(0, phase="Failed", **terminated(75, json.dumps({"reason": "Storage", "message": FULL}))), a_pod(1))
SECOND = Observed(worker_jobs=(a_worker_job(2),), pods=(a_pod(0, attempt=2), a_pod(1, attempt=2)))


def storage_condition(status: JobStatus) -> tuple[str, str]:
    condition = status.condition("StorageFailing")
    assert condition is not None
    return condition.status, condition.message


def test_a_full_volume_is_a_condition_and_one_event_until_a_checkpoint_is_written() -> None:
    saved = LastCheckpoint(step=500)
    plan = plan_for(
        a_status(Phase.RUNNING, last_checkpoint=saved), Observed(worker_jobs=(FAILED_JOB,), pods=FULL_VOLUME)
    )
    assert next((notice.reason, notice.type) for notice in plan.notices) == ("StorageFailing", "Warning")
    assert storage_condition(plan.status) == ("True", FULL)
    assert plan.status.is_true("CheckpointReady")
    again = plan_for(plan.status, SECOND)
    assert "StorageFailing" not in {notice.reason for notice in again.notices}
    assert storage_condition(again.status) == ("True", FULL)
    wrote = Observed(
        worker_jobs=SECOND.worker_jobs,
        pods=SECOND.pods,
        progress=Progress(stage="training", last_checkpoint=Checkpoint(step=600)),
    )
    assert storage_condition(plan_for(again.status, wrote).status) == ("False", "")


def test_another_failure_does_not_mend_a_volume_and_the_jobs_end_does() -> None:
    full = plan_for(a_status(Phase.RUNNING), Observed(worker_jobs=(FAILED_JOB,), pods=FULL_VOLUME)).status
    other = a_pod(0, phase="Failed", attempt=2, **terminated(1, "bug"))
    failed = a_worker_job(2, conditions=("Failed",))
    assert storage_condition(plan_for(full, Observed(worker_jobs=(failed,), pods=(other,))).status) == ("True", FULL)
    done = plan_for(full, Observed(worker_jobs=(a_worker_job(2, conditions=("Complete",)),)))
    assert done.status.phase is Phase.SUCCEEDED
    assert storage_condition(done.status) == ("False", "")


def after(progress: Progress, code: int = 0) -> JobStatus:
    """The status after an attempt whose last words are `progress`."""
    words = terminated(code, progress.to_json().decode())
    pod = a_pod(0, "Failed" if code else "Succeeded", **words)
    job = FAILED_JOB if code else a_worker_job(conditions=("Complete",))
    return plan_for(a_status(Phase.RUNNING), Observed(worker_jobs=(job,), pods=(pod,))).status


ENDED = Progress(stage="done", step=4, max_steps=30, initial_eval_loss=6.45, final_eval_loss=5.1)


def test_a_job_that_improved_says_so_in_a_condition_alone() -> None:
    status = after(ENDED)
    improved = status.condition("Improved")
    assert improved is not None
    assert (improved.status, improved.reason) == ("True", "LossFell")
    assert status.message == "trained, evaluated and exported"
    assert status.condition("StoppedEarly") is None


def test_what_people_must_know_of_a_job_that_succeeded_is_in_its_message_too() -> None:
    records = RecordCounts(records=9, dropped=2)
    status = after(ENDED.model_copy(update={"final_eval_loss": 973.0, "stale_evaluations": 2, "records": records}))
    assert status.phase is Phase.SUCCEEDED
    assert status.message == (
        "trained, evaluated and exported; held-out loss rose from 6.45 to 973: the model is worse than before "
        "training; lower optimization.learningRate first; stopped at step 4 of 30: validation loss has not fallen for "
        "2 evaluations; of 9 records 2 dropped (nothing to learn is left within data.sequenceLength)"
    )
    found = {type_: status.condition(type_) for type_ in ("Improved", "StoppedEarly", "DataComplete")}
    assert {type_: each.status for type_, each in found.items() if each} == {
        "Improved": "False",
        "StoppedEarly": "True",
        "DataComplete": "False",
    }


def test_a_job_that_had_to_improve_and_did_not_fails_at_once_and_its_condition_stays() -> None:
    status = after(ENDED.model_copy(update={"stage": "evaluating", "final_eval_loss": 7.0}), code=70)
    assert (status.phase, status.attempt) == (Phase.FAILED, 1)
    improved = status.condition("Improved")
    assert improved is not None
    assert improved.reason == "LossRose"


def test_a_job_whose_trainer_told_nothing_has_no_word_about_what_it_found() -> None:
    status = plan_for(a_status(Phase.RUNNING), COMPLETE).status
    assert not {"Improved", "StoppedEarly", "DataComplete"} & {each.type for each in status.conditions}


def test_a_job_whose_volume_never_failed_has_no_word_about_it() -> None:
    plan = plan_for(a_status(Phase.RUNNING), RETRYABLE)
    assert plan.status.condition("StorageFailing") is None


def test_transition_times_move_only_with_the_status() -> None:
    running = plan_for(a_status(Phase.STARTING), TWO_READY).status
    later = plan_for(running, TWO_READY, seconds=60).status
    assert later == running


def test_one_event_per_change() -> None:
    observed = TWO_READY
    first = plan_for(a_status(Phase.STARTING), observed)
    assert [(notice.type, notice.reason) for notice in first.notices] == [("Normal", "AllNodesReady")]
    assert plan_for(first.status, observed).notices == ()
    assert [n.type for n in plan_for(first.status, RETRYABLE).notices] == ["Warning"]


def test_an_invalid_spec_is_told_and_not_acted_upon() -> None:
    job = a_job({"optimization": {"globalBatchSize": 7}, "trainer": {"image": "latest"}})
    plan = invalid(job, NOW)
    accepted = plan.status.condition("Accepted")
    assert accepted is not None
    assert (plan.status.phase, accepted.status, plan.status.is_true("Stalled")) == (Phase.FAILED, "False", True)
    assert "spec.trainer.image" in plan.status.message
    assert (plan.apply, plan.delete, plan.look_again, plan.status.is_finished) == ((), (), None, False)


def test_a_running_job_whose_spec_a_newer_operator_refuses_keeps_its_phase() -> None:
    job = a_job({"optimization": {"globalBatchSize": 7}}, a_status(Phase.RUNNING))
    assert invalid(job, NOW).status.phase is Phase.RUNNING


def test_a_refusal_is_told_with_what_the_api_server_said() -> None:
    job = a_job()
    plan = decide(job, Observed(), SETTINGS, NOW)
    again = refused(job, plan, Refusal(Cause.REFUSED, "Job demo-a1: exceeded quota: team"), SETTINGS, NOW)
    assert phase_reason_attempt(again) == ("Pending", "QuotaExceeded", 0)
    assert "exceeded quota: team" in again.status.message
    assert again.look_again == SETTINGS.refused_retry_s


@pytest.mark.parametrize(
    ("ttl", "seconds", "is_deleted", "look_again"),
    [(None, 10**6, False, None), (60, 59, False, 1.0), (60, 60, True, None), (0, 0, True, None)],
)
def test_a_finished_job_is_deleted_when_its_time_has_come(
    ttl: int | None, seconds: int, is_deleted: bool, look_again: float | None
) -> None:
    over = Condition(type="Complete", status="True", last_transition_time=NOW, reason="Completed")
    status = a_status(Phase.SUCCEEDED, conditions=(over,), completion_time=NOW)
    job = a_job({"runPolicy": {"ttlSecondsAfterFinished": ttl}}, status)
    plan = finished(job, NOW + timedelta(seconds=seconds))
    assert (bool(plan.delete), plan.look_again) == (is_deleted, look_again)


def test_a_finished_job_stays_so_when_its_spec_changes() -> None:
    over = Condition(type="Failed", status="True", last_transition_time=NOW, reason="NotRetryable")
    job = replace(a_job(status=a_status(Phase.FAILED, conditions=(over,))), generation=5)
    plan = finished(job, NOW)
    assert (plan.status.phase, plan.status.observed_generation) == (Phase.FAILED, 5)
