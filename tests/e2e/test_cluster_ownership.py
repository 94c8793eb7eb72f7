"""Objects of others that stand where a job needs its own, and claims of earlier jobs, on the real API server.

No trainer runs here: what is asked is what is made, what is left alone, and what the status says.
"""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from deepseek_operator.controller.workqueue import CONCURRENCY
from support.cluster import kube
from support.cluster.kube import AUDIT_LOG, OPERATOR_NAMESPACE, PAUSE, RELEASE, Manifest, Namespace, TrainingJob, a_job
from support.cluster.obstacles import LACKING, looks_now, told

CLAIM = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
THEIRS: dict[str, tuple[str, str, Manifest]] = {  # resource: apiVersion, kind, what it holds
    "serviceaccounts": ("v1", "ServiceAccount", {}),
    "networkpolicies": (
        "networking.k8s.io/v1",
        "NetworkPolicy",
        {"spec": {"podSelector": {"matchLabels": {"a": "b"}}}},
    ),
    "services": ("v1", "Service", {"spec": {"ports": [{"port": 80}], "selector": {"app": "web"}}}),
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim", {"spec": CLAIM}),
    "jobs": ("batch/v1", "Job", {"spec": {"suspend": True, "template": {"spec": PAUSE}}}),
}
WRITES = {"create", "update", "patch", "delete"}
RESIZE = "only dynamically provisioned pvc can be resized"


def their_object(resource: str, job: str) -> Manifest:
    """An object of somebody else under the name that `job` needs for its own."""
    version, kind, content = THEIRS[resource]
    name = f"{job}-a1" if kind == "Job" else f"dstj-{job}"
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": {"app": "web"}}, **content}


def as_it_is(team: Namespace, resource: str, name: str) -> Any:
    """Whose it is, what it selects, and who wrote it."""
    found = team.get(resource, name)
    assert found, f"{name} of {resource} is gone"
    meta = found["metadata"]
    managers = {field["manager"] for field in meta["managedFields"]}
    spec = {name: found.get("spec", {}).get(name) for name in ("selector", "podSelector", "accessModes", "suspend")}
    return meta["uid"], meta["labels"], meta.get("ownerReferences"), spec, RELEASE in managers


@pytest.mark.parametrize("resource", THEIRS)
def test_an_object_of_somebody_else_is_named_left_alone_and_waited_for(team: Namespace, resource: str) -> None:
    name = f"taken-{resource[:12]}"
    theirs = their_object(resource, name)
    team.apply(theirs)
    before = as_it_is(team, resource, theirs["metadata"]["name"])
    job = TrainingJob(team, a_job(name, LACKING))
    message = told(job, "NameTaken")
    assert f"{theirs['kind']} {theirs['metadata']['name']} is somebody else's" in message
    assert "app=web" in message
    looks_now(job)
    assert as_it_is(team, resource, theirs["metadata"]["name"]) == before
    team.kubectl("delete", "dstj", name)
    of_job = ("-n", team.name, "-l", f"training.dstj.io/job-name={name}")
    claim = {f"persistentvolumeclaim/dstj-{name}"}
    kube.wait_until("the job's own objects are gone", lambda: kube.everything(*of_job) <= claim, 40)
    assert as_it_is(team, resource, theirs["metadata"]["name"]) == before, "it does not go with the job"


def test_a_job_starts_by_itself_when_the_name_is_free(team: Namespace) -> None:
    theirs = their_object("services", "freed")
    team.apply(theirs)
    job = TrainingJob(team, a_job("freed", {}))
    told(job, "NameTaken")
    team.kubectl("delete", "service", "dstj-freed")
    looks_now(job)
    kube.wait_until("its service", lambda: team.get("services", "dstj-freed"), 40)
    kube.wait_until("its worker job", lambda: team.get("jobs", "freed-a1"), 20)


def test_a_policy_of_somebody_else_is_no_isolation(team: Namespace) -> None:
    job = TrainingJob(team, a_job("replaced", {}))
    kube.wait_until("its worker job", lambda: team.get("jobs", "replaced-a1"), 20)
    in_one_step = {"metadata": {"ownerReferences": None, "labels": {"app": "web"}}}  # else the operator is first
    team.kubectl("patch", "networkpolicy", "dstj-replaced", "--type=merge", f"--patch={json.dumps(in_one_step)}")

    def is_told() -> bool:
        looks_now(job)
        return "NetworkPolicy dstj-replaced is somebody else's" in job.status.get("message", "")

    kube.wait_until("the status says that the policy is not the job's", is_told, 90, every_s=3)
    assert (job.condition("NetworkIsolated") or {})["status"] == "False"


@pytest.fixture
def storage_class() -> Iterator[str]:
    """One that expands no volume, until it is told to."""
    meta = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "fixed"}}
    kube.apply(meta | {"provisioner": "dstj.io/hostpath"})
    yield "fixed"
    kube.kubectl("delete", "storageclass", "fixed")


def a_job_with(team: Namespace, name: str, **volume: str) -> TrainingJob:
    return TrainingJob(team, a_job(name, LACKING | {"checkpoint": {"volume": volume}}))


def test_a_claim_that_stayed_and_cannot_grow_is_told_with_ways_out_that_work(
    team: Namespace, storage_class: str
) -> None:
    fixed = {"storageClassName": storage_class}
    a_job_with(team, "grown", size="1Gi", **fixed)
    team.directory_of("dstj-grown")
    for size in ("2Gi", "1Gi"):
        anew(team, "grown")
        job = a_job_with(team, "grown", size=size, **fixed)
        if size == "2Gi":
            message = told(job, "ClaimUnchangeable")
            assert RESIZE in message
            assert "allowVolumeExpansion" in message
            assert "checkpoint.volume.claimName" in message
        else:
            kube.wait_until("with its former size it starts", lambda: team.get("jobs", "grown-a1"), 20)
    anew(team, "grown")
    job = a_job_with(team, "grown", claimName="dstj-grown")
    kube.wait_until("with the claim named it starts", lambda: team.get("jobs", "grown-a1"), 20)
    anew(team, "grown")
    kube.kubectl("patch", "storageclass", storage_class, "-p", json.dumps({"allowVolumeExpansion": True}))
    a_job_with(team, "grown", size="2Gi", **fixed)
    kube.wait_until("where the class expands it starts", lambda: team.get("jobs", "grown-a1"), 20)
    claim = team.get("persistentvolumeclaims", "dstj-grown")
    assert claim
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"


def anew(team: Namespace, name: str) -> None:
    """The job is deleted, and its claim stays."""
    team.kubectl("delete", "dstj", name)
    kube.wait_until("its worker job is gone", lambda: not team.get("jobs", f"{name}-a1"), 40)


@pytest.fixture
def webhook_that_is_down(team: Namespace) -> Iterator[str]:
    """Of jobs in the team's namespace, as Kueue's is while Kueue is upgraded."""
    rule = {"apiGroups": ["batch"], "apiVersions": ["v1"], "resources": ["jobs"], "operations": ["CREATE"]}
    hook = {
        "name": "mjob.kb.io",
        "clientConfig": {"service": {"namespace": team.name, "name": "nobody", "path": "/"}},
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": team.name}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 2,
    }
    name = f"down-{team.name}"
    meta = {"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration"}
    kube.apply(meta | {"metadata": {"name": name}, "webhooks": [hook]})
    yield name
    kube.kubectl("delete", "mutatingwebhookconfiguration", name, "--ignore-not-found")


def test_a_webhook_that_is_down_is_named_in_the_status_until_it_is_back(
    team: Namespace, webhook_that_is_down: str
) -> None:
    job = TrainingJob(team, a_job("hooked", LACKING))
    message = told(job, "PassFailed")
    assert 'failed calling webhook "mjob.kb.io"' in message
    kube.kubectl("delete", "mutatingwebhookconfiguration", webhook_that_is_down)
    kube.wait_until("its worker job", lambda: team.get("jobs", "hooked-a1"), 90)
    kube.wait_until(f"the error is gone: {job.status}", lambda: "webhook" not in job.status["message"], 90)


def test_a_namespace_that_goes_makes_no_storm_of_refused_writes(namespace: Namespace) -> None:
    names = [f"job-{number}" for number in range(100)]
    namespace.apply(*(a_job(name, LACKING) for name in names))

    def are_told() -> bool:
        jobs = namespace.list("deepseektrainingjobs")
        return len(jobs) == len(names) and all(job.get("status", {}).get("phase") for job in jobs)

    kube.wait_until("all jobs have a status", are_told, 120, every_s=2)
    mark = AUDIT_LOG.stat().st_size
    namespace.delete()
    kube.wait_until(
        "the namespace is gone",
        lambda: kube.server().read(f"/api/v1/namespaces/{namespace.name}") is None,
        timeout_s=180,
    )
    refused = [code for verb, code in writes_in(namespace, mark) if code in {403, 404}]
    assert len(refused) <= CONCURRENCY, "no pass tries after one was refused"


def writes_in(namespace: Namespace, mark: int) -> Iterator[tuple[str, int]]:
    """Verb and code of the operator's writes in the namespace, from the audit log's byte `mark` on."""
    user = f"system:serviceaccount:{OPERATOR_NAMESPACE}:{RELEASE}"
    with AUDIT_LOG.open() as log:
        log.seek(mark)
        events = [json.loads(line) for line in log if line.endswith("\n")]
    for event in events:
        is_theirs = event["user"]["username"] == user
        if is_theirs and event.get("objectRef", {}).get("namespace") == namespace.name and event["verb"] in WRITES:
            yield event["verb"], event.get("responseStatus", {}).get("code", 0)
