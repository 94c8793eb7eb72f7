"""How attempts follow each other on a real API server and Job controller, with pods that go wrong in many ways.

There are no nodes: the tests report what kubelets and the scheduler would.
"""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from deepseek_operator.objects.observed import Manifest
from support.cluster.passes import Jobs, Plane, container, control_plane, jobs_on

UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes fit"}
OWN_LIMIT = "Pod ephemeral local storage usage exceeds the total limit of containers 64Mi. "
QUEUE = "kueue.x-k8s.io/queue-name"
ALONE = {"trainer": {"numNodes": 1}}


@pytest.fixture(scope="module")
def plane() -> Iterator[Plane]:
    with control_plane() as plane:
        yield plane


@pytest.fixture
async def jobs(plane: Plane) -> AsyncIterator[Jobs]:
    async with jobs_on(plane) as jobs:
        yield jobs


def reason_of(status: Manifest) -> str:
    return next((str(c["reason"]) for c in status.get("conditions", ()) if c["type"] == "Running"), "")


def active(status: Manifest) -> int:
    return int(status["replicaStatuses"]["nodes"]["active"])


def is_at(phase: str, attempt: int = 1) -> Any:
    return lambda status: (status.get("phase"), status.get("attempt")) == (phase, attempt)


def away(worker_job: Manifest) -> list[str]:
    """The nodes that the pods of a worker Job must keep away from."""
    affinity = worker_job["spec"]["template"]["spec"].get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {}).get("nodeSelectorTerms", ())
    return [node for term in required for each in term["matchExpressions"] for node in each["values"]]


def ended(code: int) -> Manifest:
    state = {"exitCode": code, "reason": "Error" if code else "Completed", "finishedAt": "2026-01-01T00:00:00Z"}
    return container("trainer", {"terminated": state})


async def test_a_pod_that_exceeds_its_own_disk_limit_is_a_failure_with_pauses_and_an_end(jobs: Jobs) -> None:
    await jobs.submit(**ALONE, runPolicy={"maxRestarts": 2})
    for attempt in (1, 2, 3):
        await jobs.until(is_at("Starting", attempt))
        (pod,) = await jobs.made(1, f"demo-a{attempt}")
        await jobs.run(pod, machine=f"node-{attempt}")
        await jobs.until(is_at("Running", attempt))
        await jobs.report(pod, phase="Failed", reason="Evicted", message=OWN_LIMIT)
        if attempt == 3:
            break
        status = await jobs.until(is_at("Restarting", attempt + 1))
        assert status["restarts"] == {"job": attempt, "inPlace": 0, "disruption": 0}
        assert "raise the limit of ephemeral-storage" in status["message"]
        await jobs.passes()
        assert await jobs.worker_job(f"demo-a{attempt + 1}") is None, "the pause has not passed"
        jobs.wait(10 * attempt + 1)
    status = await jobs.until(lambda status: status["phase"] == "Failed")
    assert reason_of(status) == "RestartBudgetExhausted"
    assert [each["reason"] for each in status["attempts"]] == ["Evicted"] * 3
    assert await jobs.worker_job("demo-a1") is None
    assert len(await jobs.pods("demo-a2")) == 1, "the logs of the failed attempt before the last one are kept"


async def test_the_claim_of_a_job_that_was_suspended_before_its_first_start_is_made(jobs: Jobs) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": {"pods": "0"}}}
    await jobs.create(quota)
    await jobs.submit(suspend=True)
    await jobs.until(lambda status: status.get("phase") == "Suspended")
    await jobs.change({"spec": {"suspend": False}})
    await jobs.until(lambda status: reason_of(status) == "QuotaExceeded")
    await jobs.change({"spec": {"suspend": True}})
    await jobs.until(lambda status: status["phase"] == "Suspended")
    await jobs.api.request("DELETE", f"/api/v1/namespaces/{jobs.namespace}/resourcequotas/team")
    await jobs.change({"spec": {"suspend": False}})
    await jobs.until(is_at("Starting", 2))
    assert await jobs.read("PersistentVolumeClaim", "dstj-demo") is not None
    await jobs.made(2, "demo-a2")


async def test_the_deadline_waits_for_machines(jobs: Jobs) -> None:
    await jobs.submit(runPolicy={"activeDeadlineSeconds": 3600})
    await jobs.until(is_at("Starting"))
    pods = await jobs.made(2)
    for pod in pods:
        await jobs.report(pod, conditions=[UNSCHEDULABLE])
    jobs.wait(3700)
    status = await jobs.passes()
    assert (status["phase"], status["runningSeconds"], reason_of(status)) == ("Starting", 0, "Unschedulable")
    for pod in pods:
        await jobs.run(pod)
    await jobs.until(is_at("Running"))
    jobs.wait(3601)
    await jobs.until(lambda status: reason_of(status) == "DeadlineExceeded" and status["phase"] == "Failed")


async def test_of_two_jobs_with_half_of_their_machines_one_lets_go(jobs: Jobs) -> None:
    for name in ("a", "b"):
        await jobs.submit(name)
        await jobs.until(is_at("Starting"), name)
        placed, waiting = await jobs.made(2, f"{name}-a1")
        await jobs.run(placed, machine=f"node-{name}")
        await jobs.report(waiting, conditions=[UNSCHEDULABLE])
    given_back: list[str] = []
    while not given_back:
        jobs.wait(10)
        given_back = [name for name in ("a", "b") if (await jobs.passes(name, 1))["phase"] == "Pending"]
    assert len(given_back) == 1, "both let go at once"
    (first,) = given_back
    status = await jobs.status(first)
    assert (status["notPlaced"], status["restarts"]["job"]) == (1, 0)
    await jobs.until(lambda status: active(status) == 0, first)
    assert await jobs.worker_job(f"{first}-a1") is None
    other = "b" if first == "a" else "a"
    _, waiting = await jobs.pods(f"{other}-a1")
    await jobs.run(waiting, machine=f"node-{first}")
    await jobs.until(is_at("Running"), other)
    jobs.wait(11)
    await jobs.until(is_at("Starting"), first)


async def test_a_node_that_rejects_pods_is_left_out_of_the_next_attempt(jobs: Jobs) -> None:
    await jobs.submit(**ALONE)
    await jobs.until(is_at("Starting"))
    (pod,) = await jobs.made(1)
    rejected = {"phase": "Failed", "reason": "UnexpectedAdmissionError", "containerStatuses": []}
    await jobs.run(pod, "gpu-7", **rejected, message="no healthy devices present")
    status = await jobs.until(is_at("Restarting", 2))
    assert status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}
    assert [node["name"] for node in status["excludedNodes"]] == ["gpu-7"]
    jobs.wait(11)
    await jobs.until(is_at("Starting", 2))
    second = await jobs.worker_job("demo-a2")
    assert second is not None
    assert away(second) == ["gpu-7"]


async def test_peers_that_were_never_placed_cost_no_restart(jobs: Jobs) -> None:
    await jobs.submit(runPolicy={"maxRestarts": 0})
    await jobs.until(is_at("Starting"))
    first, second = await jobs.made(2)
    await jobs.run(first)
    await jobs.report(second, conditions=[UNSCHEDULABLE])
    await jobs.passes()
    await jobs.report(first, phase="Failed", containerStatuses=[ended(75)])
    status = await jobs.until(is_at("Restarting", 2))
    assert (status["notPlaced"], status["restarts"]["job"]) == (1, 0)


async def test_a_queued_job_moves_to_the_queue_that_its_label_names_now(jobs: Jobs) -> None:
    await jobs.submit(labels={QUEUE: "team-a"})
    await jobs.until(is_at("Starting"))
    where = f"/apis/batch/v1/namespaces/{jobs.namespace}/jobs/demo-a1"
    held = {"spec": {"suspend": True}}
    await jobs.api.request("PATCH", where, body=held, content_type="application/merge-patch+json")
    status = await jobs.until(is_at("Queued"))
    assert "'team-a'" in status["message"]
    await jobs.until(lambda status: active(status) == 0)
    await jobs.change({"metadata": {"labels": {QUEUE: "team-b"}}})

    def has_moved(status: Manifest) -> bool:
        return status["phase"] == "Starting"

    await jobs.until(has_moved)
    moved = await jobs.worker_job("demo-a1")
    assert moved is not None
    assert moved["metadata"]["labels"][QUEUE] == "team-b"


async def test_a_job_with_a_sidecar_that_never_ends_succeeds_and_frees_its_machine(jobs: Jobs) -> None:
    await jobs.submit(**ALONE)
    await jobs.until(is_at("Starting"))
    (pod,) = await jobs.made(1)
    proxy = container("proxy", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    await jobs.run(pod)
    await jobs.until(is_at("Running"))
    await jobs.report(pod, containerStatuses=[proxy, ended(0)])
    await jobs.until(lambda status: status["phase"] == "Succeeded")
    jobs.wait(15)
    await jobs.until(lambda status: active(status) == 0)
    assert await jobs.pods() == []


async def test_a_job_with_a_sidecar_fails_when_its_trainer_does(jobs: Jobs) -> None:
    await jobs.submit(**ALONE)
    await jobs.until(is_at("Starting"))
    (pod,) = await jobs.made(1)
    await jobs.run(pod)
    await jobs.until(is_at("Running"))
    proxy = container("proxy", {"running": {"startedAt": "2026-01-01T00:00:00Z"}})
    await jobs.report(pod, containerStatuses=[proxy, ended(64)])
    status = await jobs.until(lambda status: status["phase"] == "Failed")
    assert (reason_of(status), status["lastFailure"]["exitCode"]) == ("NotRetryable", 64)
    jobs.wait(15)
    await jobs.until(lambda status: active(status) == 0)


async def test_a_missing_priority_class_is_named_and_another_one_is_taken_at_once(jobs: Jobs) -> None:
    await jobs.submit(scheduling={"priorityClassName": "no-such-class"})
    status = await jobs.until(lambda status: reason_of(status) == "PriorityClassNotFound")
    assert "no PriorityClass with name no-such-class" in status["message"]
    await jobs.change({"spec": {"scheduling": None}})
    await jobs.until(lambda status: active(status) == 2)


async def test_a_missing_storage_class_is_named_by_the_event_about_the_claim(jobs: Jobs) -> None:
    await jobs.submit(checkpoint={"volume": {"storageClassName": "no-such-class"}})
    await jobs.until(is_at("Starting"))
    status = await jobs.until(lambda status: reason_of(status) == "ProvisioningFailed")
    assert 'claim dstj-demo: storageclass.storage.k8s.io "no-such-class" not found' in status["message"]


async def test_a_limit_range_is_counted_before_any_pod_is_refused(jobs: Jobs) -> None:
    hard = {"requests.cpu": "3", "limits.cpu": "100"}
    await jobs.create({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}})
    given = [{"type": "Container", "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2"}}]
    await jobs.create({"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": given}})
    await jobs.submit()
    status = await jobs.until(lambda status: reason_of(status) == "QuotaExceeded")
    assert "ResourceQuota 'q' is short of requests.cpu: 4 needed at once, 3 of 3 free" in status["message"]
    assert await jobs.worker_job("demo-a1") is None


async def test_a_deleted_job_that_a_finalizer_keeps_has_no_pods_left(jobs: Jobs) -> None:
    await jobs.submit()
    await jobs.until(is_at("Starting"))
    for pod in await jobs.made(2):
        await jobs.run(pod)
    await jobs.until(is_at("Running"))
    await jobs.change({"metadata": {"finalizers": ["audit.example.com/keep"]}})
    where = f"/apis/training.dstj.io/v1alpha1/namespaces/{jobs.namespace}/deepseektrainingjobs/demo"
    await jobs.api.request("DELETE", where)
    status = await jobs.until(lambda status: status["phase"] == "Suspended")
    assert "metadata.finalizers has audit.example.com/keep" in status["message"]
    assert await jobs.pods() == []
    await jobs.change({"metadata": {"finalizers": None}})
    assert await jobs.read("DeepSeekTrainingJob", "demo", "training.dstj.io/v1alpha1") is None
