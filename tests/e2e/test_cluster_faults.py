"""What goes wrong around the operator: it dies, its rights go, the API server goes.  Jobs go on all the same."""

import itertools
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.cluster import kube
from support.cluster.kube import Namespace, TrainingJob, a_job, cluster, example, kubectl, wait_until

# Its pods wait for a claim for ever: no machine has to do with them.
STARTS_NOTHING = {"trainer": {"image": None, "profile": "cpu"}, "data": {"train": {"claimName": "nobody-makes-it"}}}


def doomed(namespace: Namespace, name: str = "doomed") -> TrainingJob:
    """A job whose pods run for seconds: the first of them finds no data."""
    namespace.claim("texts")
    manifest = example("pretrain-tiny")
    manifest["metadata"]["name"] = name
    return TrainingJob(namespace, manifest)


@pytest.fixture
def no_operator(operator_comes_back: None) -> None:
    """The installed operator is away for the time of a test."""
    kube.scale_operator(0)


def test_a_job_reaches_its_end_though_the_operator_dies_after_each_of_its_writes(
    no_operator: None, namespace: Namespace, tmp_path: Path, record_property: Any
) -> None:
    job = doomed(namespace)
    # A new operator begins by making sure of all that the last one made, so it must do one write more to get further.
    deaths = next(writes - 1 for writes in itertools.count(1) if not dies(job, writes, tmp_path))
    record_property("deaths of an operator that dies after each of its writes", deaths)
    assert deaths >= 5, "once for each object of the job"
    status = job.status
    assert (status["attempt"], status["restarts"]["job"]) == (1, 0), "no attempt was started twice"
    assert [found["metadata"]["name"] for found in namespace.list("jobs")] == ["doomed-a1"]
    failure = status["lastFailure"]
    assert (failure["exitCode"], failure["reason"]) == (65, "Data")
    assert failure["nodeName"] in {"node-0", "node-1"}
    assert "texts" in failure["message"], "the last line names what is missing"


def dies(job: TrainingJob, writes: int, directory: Path) -> bool:
    """Whether an operator with the installed one's rights has done so many writes before the job ends."""
    command = [sys.executable, str(Path(__file__).with_name("mortal_operator.py")), str(writes)]
    options = ["--namespace", job.namespace.name, "--port", "18081", "--log-level", "ERROR"]
    environ = os.environ | {"KUBECONFIG": str(kubeconfig_of_operator(directory))}
    process = subprocess.Popen(command + options, env=environ)
    try:
        ended = wait_until("the end", lambda: process.poll() is not None or job.status.get("phase") == "Failed", 90)
        return ended and process.poll() == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()


def kubeconfig_of_operator(directory: Path) -> Path:
    file = directory / "operator.conf"
    if not file.exists():
        config = yaml.safe_load(kube.KUBECONFIG.read_text())
        token = kubectl("create", "token", "deepseek-operator", "-n", kube.OPERATOR_NAMESPACE).strip()
        for user in config["users"]:
            user["user"] = {"token": token}
        file.write_text(yaml.safe_dump(config))
    return file


def test_a_job_ends_well_though_the_api_server_dies_under_it(namespace: Namespace, record_property: Any) -> None:
    before = kube.operator_restarts()
    job = doomed(namespace)
    wait_until("the first pods", lambda: job.pods or None)
    cluster("restart", "kube-apiserver")
    began = time.monotonic()
    wait_until("the API server is back", lambda: is_ready() or None, 60)
    status = wait_until("the end", lambda: job.status if job.status.get("phase") == "Failed" else None, 120)
    record_property("API server killed: seconds to the job's end in its status", round(time.monotonic() - began, 1))
    assert status["lastFailure"]["exitCode"] == 65
    assert kube.operator_restarts() == before, "the operator lived through it"


def test_jobs_that_are_applied_while_the_api_server_dies_get_one_worker_job_each(
    namespace: Namespace, record_property: Any
) -> None:
    before = kube.operator_restarts()
    manifests = [a_job(f"job-{number:02}", STARTS_NOTHING) for number in range(30)]
    with ThreadPoolExecutor(1) as pipeline:
        applied = pipeline.submit(namespace.apply, *manifests)
        wait_until("the first worker job", lambda: namespace.list("jobs"), every_s=0.05)
        cluster("restart", "kube-apiserver")
        began = time.monotonic()
        record_property("API server killed under 30 jobs: their applying is cut short", bool(applied.exception()))
    wait_until("the API server is back", lambda: is_ready() or None, 60)
    namespace.apply(*manifests)  # as a pipeline would
    statuses = wait_until("all attempts are counted", lambda: settled(namespace, len(manifests)), 120)
    record_property("API server killed under 30 jobs: seconds to the last worker job", round(time.monotonic() - began))
    assert {
        (status["attempt"], status["restarts"]["job"], status["restarts"]["disruption"]) for status in statuses
    } == {(1, 0, 0)}
    made = sorted(found["metadata"]["name"] for found in namespace.list("jobs"))
    assert made == [f"{manifest['metadata']['name']}-a1" for manifest in manifests]
    assert kube.operator_restarts() == before, "the operator lived through it"


def settled(namespace: Namespace, number: int) -> list[dict[str, Any]] | None:
    """The statuses of all jobs, once each tells of its worker job."""
    statuses = [found.get("status", {}) for found in namespace.list("deepseektrainingjobs")]
    return statuses if [status.get("phase") for status in statuses] == ["Starting"] * number else None


def is_ready() -> bool:
    looked = subprocess.run(
        kube.kubectl_command("get", "--raw", "/readyz"), capture_output=True, text=True, check=False
    )
    return looked.stdout == "ok"


def test_rights_that_were_taken_and_given_back_need_no_restart(namespace: Namespace, record_property: Any) -> None:
    before = kube.operator_restarts()
    binding = kubectl("get", "clusterrolebinding", "deepseek-operator", "-o", "yaml")
    kubectl("delete", "clusterrolebinding", "deepseek-operator")
    try:
        job = doomed(namespace)
        time.sleep(5)  # nothing to wait for: nothing happens
        assert not job.status
    finally:
        began = time.monotonic()
        kubectl("create", "-f", "-", input=binding)
    wait_until("the job is seen", lambda: job.status.get("phase"), 120)
    record_property("rights given back: seconds to the job's first status", round(time.monotonic() - began, 1))
    assert kube.operator_restarts() == before


def test_two_jobs_side_by_side_share_nothing(namespace: Namespace) -> None:
    jobs = [doomed(namespace, name) for name in ("left", "right")]
    for job in jobs:
        wait_until(f"pods of {job.name}", lambda job=job: len(job.pods) == 2 or None)
    kinds = ("serviceaccounts", "services", "networkpolicies", "persistentvolumeclaims", "jobs", "pods")
    of = {
        job.name: [thing for kind in kinds for thing in namespace.list(kind, f"training.dstj.io/job-name={job.name}")]
        for job in jobs
    }
    for name, other in (("left", "right"), ("right", "left")):
        assert len(of[name]) == 7
        foreign = {thing["metadata"]["uid"] for thing in of[other]} | {job.found["metadata"]["uid"] for job in jobs}
        owners = {owner["uid"] for thing in of[name] for owner in thing["metadata"].get("ownerReferences", ())}
        own = {thing["metadata"]["uid"] for thing in of[name]} | {named(jobs, name)["metadata"]["uid"]}
        assert owners <= own
        assert not own & (foreign - own)
        mounted = {claim for thing in of[name] if thing["kind"] == "Pod" for claim in claims_of(thing)}
        assert mounted == {f"dstj-{name}", "texts"}, "the volume that it writes is its own"


def named(jobs: list[TrainingJob], name: str) -> dict[str, Any]:
    return next(job.found for job in jobs if job.name == name)


def claims_of(pod: dict[str, Any]) -> list[str]:
    claims = (volume.get("persistentVolumeClaim") for volume in pod["spec"]["volumes"])
    return [claim["claimName"] for claim in claims if claim]
