"""Which failure set off the end of an attempt, and whether another attempt can help."""

import json
from dataclasses import replace
from typing import Any

import pytest

from deepseek_operator.jobs.failure import Verdict, failure_of
from deepseek_operator.objects.observed import Manifest
from support.builders.operator import NOW, a_pod, a_worker_job, beside, terminated

DISRUPTED = ({"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "preempted"},)
PEER_GONE = json.dumps({"rank": 0, "exitCode": 75, "reason": "PeerGone", "message": "another rank went away"})
JOB = a_worker_job(conditions=("Failed",))


def failed(index: int, exit_code: int, *, at: int = 0, message: str = "", **status: Any) -> Manifest:
    return a_pod(index, "Failed", **terminated(exit_code, message, at=at), **status)


def stopping(pod: Manifest) -> Manifest:
    """The same pod, deleted: as the Job controller does with those that are left when one has failed."""
    return pod | {"metadata": pod["metadata"] | {"deletionTimestamp": "2026-01-01T00:00:00Z"}}


@pytest.mark.parametrize(
    ("pods", "node", "verdict"),
    [
        pytest.param([failed(0, 64)], 0, Verdict.GIVE_UP, id="config"),
        pytest.param([failed(0, 70)], 0, Verdict.GIVE_UP, id="not-finite"),
        pytest.param([failed(0, 77)], 0, Verdict.GIVE_UP, id="integrity"),
        pytest.param([failed(0, 1)], 0, Verdict.RETRY, id="bug"),
        pytest.param([failed(0, 137, reason="OOMKilled")], 0, Verdict.RETRY, id="out-of-memory"),
        pytest.param([failed(0, 75)], 0, Verdict.RETRY, id="try-again"),
        pytest.param([failed(0, 143)], 0, Verdict.RETRY_FREE, id="stopped"),
        pytest.param([a_pod(1, "Failed", reason="Evicted")], 1, Verdict.RETRY, id="evicted-for-its-own-limits"),
        pytest.param([failed(0, 143, reason="Evicted")], 0, Verdict.RETRY, id="evicted-and-stopped-in-time"),
        pytest.param(
            [a_pod(1, "Failed", reason="Evicted", conditions=DISRUPTED)], 1, Verdict.RETRY_FREE, id="evicted-for-others"
        ),
        pytest.param(
            [a_pod(1, "Failed", reason="Evicted", message="The node had condition: [DiskPressure]. ")],
            1,
            Verdict.NOT_PLACED,
            id="turned-away-by-a-node-without-disk",
        ),
        *(
            pytest.param(
                [failed(0, 75, message=PEER_GONE), a_pod(1, "Failed", reason=why)], 1, Verdict.NOT_PLACED, id=why
            )
            for why in ("UnexpectedAdmissionError", "OutOfcpu", "OutOfmemory", "NodeAffinity", "OutOfnvidia.com/gpu")
        ),
        pytest.param([failed(1, 137, conditions=DISRUPTED)], 1, Verdict.RETRY_FREE, id="preempted"),
        pytest.param([failed(0, 75, at=9), failed(1, 1, at=10)], 1, Verdict.RETRY, id="crash-before-its-consequence"),
        pytest.param([failed(0, 1, at=0), failed(1, 64, at=9)], 1, Verdict.GIVE_UP, id="config-wins"),
        pytest.param(
            [failed(0, 75, at=1), failed(1, 137, at=2, conditions=DISRUPTED)], 1, Verdict.RETRY_FREE, id="lost-peer"
        ),
        pytest.param(
            [failed(0, 75, at=1, message=PEER_GONE), failed(1, 75, at=2)], 1, Verdict.RETRY, id="cause-before-lost-peer"
        ),
        pytest.param(
            [stopping(failed(0, 137, at=1)), failed(1, 75, at=2)],
            1,
            Verdict.RETRY,
            id="killed-for-not-stopping-in-time",
        ),
        pytest.param(
            [stopping(a_pod(0, "Failed", **terminated(137, at=1, reason="OOMKilled"))), failed(1, 75, at=2)],
            0,
            Verdict.RETRY,
            id="out-of-memory-before-its-peer",
        ),
        pytest.param(
            [failed(0, 75, at=1, message=PEER_GONE), stopping(failed(1, 137, at=2))],
            1,
            Verdict.RETRY,
            id="deleted-by-somebody-and-killed",
        ),
        pytest.param([failed(0, 143, at=0), failed(1, 1, at=3)], 1, Verdict.RETRY, id="stopped-by-a-crash"),
        pytest.param([failed(0, 1, at=3), failed(1, 1, at=2)], 1, Verdict.RETRY, id="first-of-equals"),
        pytest.param(
            [failed(0, 137, at=0, conditions=DISRUPTED), failed(1, 1, at=3600)],
            1,
            Verdict.RETRY,
            id="old-eviction-is-history",
        ),
        pytest.param([a_pod(0, "Succeeded"), failed(1, 1)], 1, Verdict.RETRY, id="others-done"),
    ],
)
def test_the_failure_that_started_it_decides(pods: list[Manifest], node: int, verdict: Verdict) -> None:
    failure = failure_of(JOB, pods)
    assert (failure.node, failure.verdict) == (node, verdict)


def test_an_evicted_pod_tells_which_limit_to_raise() -> None:
    told = "Pod ephemeral local storage usage exceeds the total limit of containers 64Mi. "
    failure = failure_of(JOB, [a_pod(0, "Failed", reason="Evicted", message=told)])
    assert failure.reason == "Evicted"
    assert told.strip() in failure.message
    assert "raise the limit of ephemeral-storage or memory in trainer.resourcesPerNode" in str(failure)


def test_what_a_sidecar_says_is_never_taken_for_the_trainers_word() -> None:
    ends = {"terminated": {"exitCode": 64, "reason": "Error", "message": PEER_GONE, "finishedAt": NOW.isoformat()}}
    failure = failure_of(JOB, [beside(a_pod(0, "Failed", **terminated(0)), ends)])
    assert (failure.reason, failure.exit_code, failure.verdict) == ("ContainerFailed", None, Verdict.RETRY)
    assert "container 'proxy', which somebody added to the pod, ended with 64" in failure.message
    both = failure_of(JOB, [beside(failed(0, 70, at=9), ends)])
    assert (both.exit_code, both.verdict) == (70, Verdict.GIVE_UP)


def test_a_failure_of_pods_that_never_all_ran_counts_for_nothing_unless_a_retry_cannot_help() -> None:
    for code, verdict in (
        (1, Verdict.NOT_PLACED),
        (75, Verdict.NOT_PLACED),
        (143, Verdict.NOT_PLACED),
        (64, Verdict.GIVE_UP),
    ):
        assert replace(failure_of(JOB, [failed(0, code)]), placed=False).verdict is verdict


def test_an_init_container_that_failed_is_found() -> None:
    status = {"initContainerStatuses": terminated(65, "corpus is empty")["containerStatuses"]}
    failure = failure_of(JOB, [a_pod(0, "Failed", **status)])
    assert (failure.exit_code, failure.message, failure.verdict) == (65, "corpus is empty", Verdict.GIVE_UP)


def test_the_launchers_words_are_taken() -> None:
    told = json.dumps({"rank": 3, "exitCode": 75, "reason": "TryAgain", "message": "lost rank 1\nconnection reset"})
    failure = failure_of(JOB, [failed(1, 75, message=told)])
    assert (failure.rank, failure.reason, failure.message) == (3, "TryAgain", "lost rank 1\nconnection reset")
    assert str(failure) == "node 1 rank 3 failed with exit code 75 (TryAgain): connection reset"


@pytest.mark.parametrize("reason", ["Storage", "OutOfMemory"])
def test_a_pod_that_tells_what_it_lacked_is_the_cause_and_worth_a_counted_retry(reason: str) -> None:
    cause = failed(1, 75, at=9, message=json.dumps({"rank": 1, "reason": reason, "message": "too little"}))
    failure = failure_of(JOB, [failed(0, 75, message=json.dumps({"rank": 0, "reason": "TryAgain"})), cause])
    assert (failure.node, failure.reason, failure.verdict) == (1, reason, Verdict.RETRY)


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"rank": -1}', '{"rank": "x", "message": 3}', "[" * 5000])
def test_odd_words_of_a_launcher_do_no_harm(text: str) -> None:
    failure = failure_of(JOB, [failed(0, 1, message=text)])
    assert (failure.rank, failure.exit_code) == (None, 1)


def test_the_exit_code_is_the_kubelets_not_the_pods_own_word() -> None:
    told = json.dumps({"exitCode": 143, "message": "honest"})
    assert failure_of(JOB, [failed(0, 64, message=told)]).verdict is Verdict.GIVE_UP


@pytest.mark.parametrize(
    ("reason", "verdict"), [("PodFailurePolicy", Verdict.GIVE_UP), ("BackoffLimitExceeded", Verdict.RETRY)]
)
def test_without_pods_the_worker_job_tells(reason: str, verdict: Verdict) -> None:
    job = a_worker_job()
    job["status"]["conditions"] = [{"type": "Failed", "status": "True", "reason": reason, "message": "gone"}]
    failure = failure_of(job, [])
    assert (failure.verdict, failure.message, failure.node) == (verdict, "gone", None)
