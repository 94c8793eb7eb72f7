"""What becomes of a worker Job: pods, variables, mounts and status, as Kubernetes documents them."""

from datetime import UTC, datetime

import pytest

from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.failure import failure_of, job_condition
from deepseek_operator.jobs.manifests import children
from deepseek_operator.jobs.profile import EnvVar, ProfileSpec
from deepseek_operator.jobs.resources import Accelerator
from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.objects.observed import Owner
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.names import ExitCode, node_address
from dstj.local.kubelet import environment, field_of, job_status, mounts, pod_of, terminated
from support.builders.cli import a_job

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
PROFILE = ProfileSpec(image=f"trainer@sha256:{64 * 'a'}")


def a_worker_job(nodes=2, attempt=3, profile=PROFILE, **changes):
    spec = JobSpec.model_validate(a_job(trainer__numNodes=nodes, **changes)["spec"])
    owner = Owner("ml", "tiny", "u-1")
    job = children(Blueprint(spec, owner, profile, Settings(), attempt, job_labels={}))[-1]
    job["metadata"]["uid"] = "j-1"
    return job


def pods_of(job, *codes):
    """The job's pods, each ended with an exit code; None: it still runs."""
    pods = [pod_of(job, index, NOW) for index in range(len(codes))]
    for pod, code in zip(pods, codes, strict=True):
        ready = {"type": "Ready", "status": str(code is None)}
        phase = "Running" if code is None else "Failed" if code else "Succeeded"
        state = {} if code is None else terminated(code, "", NOW, NOW)
        pod["status"] = {
            "phase": phase,
            "conditions": [ready],
            "containerStatuses": [{"name": "trainer", "state": state}],
        }
    return pods


def held(job, *codes):
    status = job_status(job, pods_of(job, *codes), NOW)
    return {c["type"]: c["reason"] for c in status["conditions"]}


def test_pod_is_named_and_labelled_as_the_job_controller_does_it():
    pod = pod_of(a_worker_job(), 1, NOW)
    assert (pod["metadata"]["name"], pod["spec"]["hostname"]) == ("tiny-a3-1", "tiny-a3-1")
    assert pod["metadata"]["labels"]["training.dstj.io/attempt"] == "3"
    assert pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] == "tiny-a3"
    assert pod["metadata"]["ownerReferences"][0] == {
        "apiVersion": "batch/v1", "kind": "Job", "name": "tiny-a3", "uid": "j-1", "controller": True,
    }  # fmt: skip


def test_environment_of_the_real_template_is_what_a_pod_would_have():
    pod = pod_of(a_worker_job(), 1, NOW)
    variables = environment(pod["spec"]["containers"][0], pod)
    assert variables["JOB_COMPLETION_INDEX"] == "1"
    assert variables["DSTJ_RENDEZVOUS"] == "tiny-a3-0.dstj-tiny:29400"
    assert variables["DSTJ_RUN_ID"] == "u-1-3"
    assert node_address(variables) == f"{pod['spec']['hostname']}.dstj-tiny"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metadata.name", "tiny-a3-0"),
        ("metadata.namespace", "ml"),
        ("metadata.labels['training.dstj.io/job-uid']", "u-1"),
        ("metadata.annotations['batch.kubernetes.io/job-completion-index']", "0"),
        ("spec.nodeName", "localhost"),
        ("status.podIP", ""),
    ],
)
def test_a_field_of_the_pod_is_what_the_downward_api_shows(path, value):
    assert field_of(pod_of(a_worker_job(), 0, NOW), path) == value


def test_every_mount_of_the_real_template_is_given_once():
    job = a_worker_job(checkpoint={"encryption": {"keyRef": {"secretName": "s"}}})
    places = {mount.path: mount.volume["name"] for mount in mounts(pod_of(job, 0, NOW))}
    assert places == {
        "/etc/dstj": "config", "/work": "work", "/tmp": "tmp", "/dev/shm": "shm",
        "/run/dstj/keys": "keys", "/volumes/corpus": "claim-0",
    }  # fmt: skip


@pytest.mark.parametrize(("return_code", "exit_code", "signal"), [(0, 0, None), (65, 65, None), (-9, 137, 9)])
def test_end_of_a_process_is_reported_as_the_kubelet_does(return_code, exit_code, signal):
    state = terminated(return_code, "why", NOW, NOW)["terminated"]
    assert (state["exitCode"], state.get("signal"), state["message"]) == (exit_code, signal, "why")
    assert state["reason"] == ("Error" if return_code else "Completed")


@pytest.mark.parametrize(
    ("codes", "conditions"),
    [
        ((None, None), {}),
        ((0, None), {}),
        ((0, 0), {"SuccessCriteriaMet": "CompletionsReached", "Complete": "CompletionsReached"}),
        ((75, None), {"FailureTarget": "BackoffLimitExceeded"}),
        ((75, 0), {"FailureTarget": "BackoffLimitExceeded", "Failed": "BackoffLimitExceeded"}),
        ((0, 65), {"FailureTarget": "PodFailurePolicy", "Failed": "PodFailurePolicy"}),
        ((-9, 0), {"FailureTarget": "BackoffLimitExceeded", "Failed": "BackoffLimitExceeded"}),
    ],
)
def test_job_ends_as_the_job_controller_ends_it(codes, conditions):
    assert held(a_worker_job(), *codes) == conditions


def test_job_waits_with_failed_for_pods_that_are_leaving():
    job = a_worker_job()
    failed, leaving = pods_of(job, 75, None)
    leaving["metadata"]["deletionTimestamp"] = "2026-01-31T12:00:00Z"
    status = job_status(job, [failed, leaving], NOW)
    assert (status["active"], status["terminating"], status["failed"]) == (0, 1, 1)
    assert not job_condition({"status": status}, "Failed")
    assert job_condition({"status": job_status(job, [failed], NOW)}, "Failed")


def test_counts_follow_the_pods():
    job = a_worker_job(nodes=4)
    status = job_status(job, pods_of(job, None, 0, 75, None), NOW)
    assert {key: status[key] for key in ("active", "ready", "succeeded", "failed")} == {
        "active": 2, "ready": 2, "succeeded": 1, "failed": 1,
    }  # fmt: skip


@pytest.mark.parametrize("code", [ExitCode.CONFIG, ExitCode.TRY_AGAIN, -9])
def test_operator_reads_the_failure_of_a_local_pod(code):
    job = a_worker_job()
    pods = pods_of(job, 0, code)
    failure = failure_of(job | {"status": job_status(job, pods, NOW)}, pods)
    assert (failure.node, failure.exit_code) == (1, code if code > 0 else 137)


def test_a_laptop_is_not_held_to_the_devices_and_the_network_of_the_cluster():
    network = EnvVar(name="NCCL_SOCKET_IFNAME", value="eth1")
    profile = PROFILE.model_copy(update={"accelerator": Accelerator(count=1), "env": (network,)})
    job = a_worker_job(profile=profile)
    pod = pod_of(job, 0, NOW)
    (trainer,) = pod["spec"]["containers"]
    assert {"NCCL_SOCKET_IFNAME", "DSTJ_ACCELERATORS"} < {variable["name"] for variable in trainer["env"]}
    assert environment(trainer, pod).keys() == {"JOB_COMPLETION_INDEX", "DSTJ_RUN_ID", "DSTJ_RENDEZVOUS"}
