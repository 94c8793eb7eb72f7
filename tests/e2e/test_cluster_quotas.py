"""Jobs that do not fit into what is left of a quota, or into any machine: all of a job or nothing, and why not."""

from collections.abc import Iterator

import pytest

from deepseek_operator.jobs.resources import GPU
from support.builders.operator import merged
from support.cluster import kube
from support.cluster.kube import Namespace, TrainingJob, a_job, example
from support.cluster.obstacles import LACKING, NO_IMAGE, goes_on, looks_now, reason_of, told


def quota(namespace: Namespace, **hard: str) -> None:
    spec = {"hard": hard}
    namespace.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota"}, "spec": spec})

    def in_force() -> bool:
        (found,) = namespace.list("resourcequotas")
        return bool(found["status"].get("hard") == hard)

    kube.wait_until(f"the quota of {hard} is in force", in_force)


@pytest.mark.parametrize("pods", [0, 1])
def test_a_job_over_the_quota_says_so_makes_no_pod_and_starts_when_there_is_room(
    namespace: Namespace, pods: int
) -> None:
    quota(namespace, pods=str(pods))
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    job = TrainingJob(namespace, example("pretrain-tiny"))
    message = told(job, "QuotaExceeded")
    assert f"ResourceQuota 'quota' is short of pods: 2 needed at once, {pods} of {pods} free, so it never" in message
    assert (job.status["phase"], (job.condition("Running") or {})["status"]) == ("Pending", "False")
    assert (namespace.list("jobs"), namespace.list("pods")) == ([], [])
    quota(namespace, pods="2")
    if pods == 0:  # with a pod's room it is left to find out by itself, within a minute
        looks_now(job)
    goes_on(job)
    assert warnings_about_pods(namespace) == []


def wants_gpus(namespace: Namespace, name: str, gpus: int) -> TrainingJob:
    """Two pods of an image that exists nowhere: they get machines and GPUs, and start nothing."""
    namespace.claim("texts")
    trainer = {"image": NO_IMAGE, "numProcPerNode": gpus, "resourcesPerNode": {"limits": {GPU: gpus}}}
    changes = {"trainer": trainer, "data": {"train": {"claimName": "texts"}}}
    return TrainingJob(namespace, a_job(name, changes | {"optimization": {"globalBatchSize": 2 * gpus}}))


def test_a_quota_of_gpus_holds_a_job_back_and_both_its_pods_get_theirs_once_it_is_raised(namespace: Namespace) -> None:
    quota(namespace, **{f"requests.{GPU}": "3"})
    job = wants_gpus(namespace, "gpus", 2)
    message = told(job, "QuotaExceeded")
    assert f"short of requests.{GPU}: 4 needed at once, 3 of 3 free, so it never fits" in message
    assert (namespace.list("jobs"), namespace.list("pods")) == ([], [])
    quota(namespace, **{f"requests.{GPU}": "4"})
    looks_now(job)
    assert NO_IMAGE in told(job, "ErrImagePull", "ImagePullBackOff")
    assert [kube.gpus_of(pod) for pod in job.pods] == [("2", "2")] * 2
    assert all(pod["spec"]["nodeName"] for pod in job.pods)
    (found,) = namespace.list("resourcequotas")
    assert found["status"]["used"] == {f"requests.{GPU}": "4"}


def test_a_job_that_wants_more_gpus_than_any_machine_has_says_so(namespace: Namespace) -> None:
    message = told(wants_gpus(namespace, "too-many", 5), "Unschedulable")
    assert f"Insufficient {GPU}" in message
    assert "ask for less in trainer.resourcesPerNode" in message


def warnings_about_pods(namespace: Namespace) -> list[str]:
    """What the Job controller was refused."""
    return [event["message"] for event in namespace.list("events") if event["reason"] == "FailedCreate"]


def test_of_two_jobs_at_the_edge_of_a_quota_one_has_all_its_pods_and_the_other_follows(namespace: Namespace) -> None:
    quota(namespace, pods="3")
    jobs = [TrainingJob(namespace, a_job(name, LACKING)) for name in ("one", "two")]

    def settled() -> list[TrainingJob] | None:
        waiting, going = sorted(jobs, key=lambda job: len(job.pods))
        is_waiting = (waiting.status.get("phase"), reason_of(waiting)) == ("Pending", "QuotaExceeded")
        return [waiting, going] if is_waiting and (len(waiting.pods), len(going.pods)) == (0, 2) else None

    waiting, going = kube.wait_until(f"all or nothing: {[job.status for job in jobs]}", settled, 180)
    namespace.kubectl("delete", "dstj", going.name)
    kube.wait_until("its pods are gone", lambda: not going.pods)
    looks_now(waiting)
    kube.wait_until(f"{waiting.name} follows: {waiting.status}", lambda: len(waiting.pods) == 2, 120)
    kube.wait_until("its attempt is counted", lambda: waiting.status.get("attempt") == 1)
    assert waiting.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}


@pytest.fixture
def heavy_profile(namespace: Namespace) -> Iterator[str]:
    """A profile whose RuntimeClass adds as much memory to a pod as the profile asks for."""
    name = namespace.name
    overhead = {"podFixed": {"memory": "1Gi"}}
    runtime = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": name}, "handler": "runc"}
    kube.apply(
        runtime | {"overhead": overhead}, merged(kube.profile(name, NO_IMAGE), {"spec": {"runtimeClassName": name}})
    )
    yield name
    kube.kubectl("delete", f"trainingprofile/{name}", f"runtimeclass/{name}")


def test_half_of_a_job_is_given_back_and_costs_no_attempt(namespace: Namespace, heavy_profile: str) -> None:
    """What a RuntimeClass adds to pods is not known to the operator: the surest way to half of a job."""
    quota(namespace, **{"requests.memory": "2Gi"})
    job = TrainingJob(namespace, a_job("half", LACKING | {"trainer": {"image": None, "profile": heavy_profile}}))
    first = kube.wait_until("the worker job", lambda: namespace.get("jobs", "half-a1"), 60)["metadata"]["uid"]
    assert "exceeded quota: quota" in told(job, "QuotaExceeded")
    kube.wait_until("it is given back", lambda: uid_of(namespace.get("jobs", "half-a1")) != first, 120)
    quota(namespace, **{"requests.memory": "4Gi"})
    looks_now(job)
    kube.wait_until(f"all pods: {job.status}", lambda: len(job.pods) == 2, 180)
    assert job.status["attempt"] == 1
    assert job.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}


def uid_of(manifest: kube.Manifest | None) -> str | None:
    return manifest["metadata"]["uid"] if manifest else None


def test_a_quota_of_storage_is_named_too(namespace: Namespace) -> None:
    quota(namespace, persistentvolumeclaims="0")
    job = TrainingJob(namespace, a_job("no-room", LACKING))
    assert "PersistentVolumeClaim dstj-no-room" in told(job, "QuotaExceeded")
    assert namespace.list("pods") == []
    quota(namespace, persistentvolumeclaims="1")
    looks_now(job)
    kube.wait_until("the worker job", lambda: namespace.get("jobs", "no-room-a1"), 60)
