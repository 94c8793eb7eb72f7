"""What the platform team decides in a TrainingProfile, seen on the pods, the policy and the machines of a job."""

from collections.abc import Iterator

import pytest
import yaml

from deepseek_operator.jobs.resources import GPU
from support.builders.operator import merged
from support.cluster import kube
from support.cluster.kube import Manifest, Namespace, TrainingJob, a_job

NO_IMAGE = "localhost/no-such-trainer@sha256:" + "0" * 64
POOL = "e2e.dstj.io/pool"
EGRESS = {"cidr": "203.0.113.0/24", "ports": [443, 8443]}


@pytest.fixture
def pool(namespace: Namespace) -> Iterator[str]:
    """A machine that takes no pods but those that tolerate it, as those with GPUs often are; its name."""
    kube.kubectl("label", "node", "node-1", f"{POOL}={namespace.name}")
    kube.kubectl("taint", "node", "node-1", f"{POOL}={namespace.name}:NoSchedule")
    yield "node-1"
    kube.kubectl("taint", "node", "node-1", f"{POOL}-")
    kube.kubectl("label", "node", "node-1", f"{POOL}-")


@pytest.fixture
def gpu_profile(pool: str, namespace: Namespace) -> Iterator[str]:
    """examples/profile-gpu.yaml for that machine, which has no more CPUs and memory than this one."""
    profile = yaml.safe_load((kube.ROOT / "examples" / "profile-gpu.yaml").read_text())
    spec = {
        "image": NO_IMAGE,
        "resourcesPerNode": {"requests": {"cpu": "100m", "memory": "1Gi"}},
        "nodeSelector": {POOL: namespace.name},
        "tolerations": [{"key": POOL, "operator": "Equal", "value": namespace.name, "effect": "NoSchedule"}],
        "egress": [EGRESS],
    }
    kube.apply(merged(profile, {"metadata": {"name": namespace.name}, "spec": spec}))
    yield namespace.name
    kube.kubectl("delete", "trainingprofile", namespace.name)


def test_a_profile_decides_gpus_machines_taints_and_destinations(
    namespace: Namespace, pool: str, gpu_profile: str
) -> None:
    namespace.claim("texts")
    trainer = {"image": None, "profile": gpu_profile}
    job = TrainingJob(namespace, a_job("picks", {"trainer": trainer, "data": {"train": {"claimName": "texts"}}}))
    pods = kube.wait_until("two pods on machines", lambda: on_machines(job.pods), 60)
    for pod in pods:
        assert pod["spec"]["nodeName"] == pool
        assert pod["spec"]["nodeSelector"] == {POOL: gpu_profile}
        assert POOL in {toleration.get("key") for toleration in pod["spec"]["tolerations"]}
        assert kube.gpus_of(pod) == ("1", "1")
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", GPU: "1"}
    policy = namespace.get("networkpolicies", "dstj-picks")
    assert policy is not None
    ports = [{"port": port, "protocol": "TCP"} for port in EGRESS["ports"]]
    assert {"to": [{"ipBlock": {"cidr": EGRESS["cidr"]}}], "ports": ports} in policy["spec"]["egress"]


def on_machines(pods: list[Manifest]) -> list[Manifest] | None:
    return pods if len(pods) == 2 and all(pod["spec"].get("nodeName") for pod in pods) else None


def test_a_job_with_another_number_of_processes_than_its_profile_has_gpus_is_told(
    namespace: Namespace, gpu_profile: str
) -> None:
    trainer = {"image": None, "profile": gpu_profile, "numProcPerNode": 2}
    job = TrainingJob(namespace, a_job("two", {"trainer": trainer}))
    kube.wait_until("its refusal", lambda: (job.condition("Accepted") or {}).get("status") == "False", 20)
    assert f"must equal {GPU} of TrainingProfile '{gpu_profile}', which is 1, not 2" in job.status["message"]
    assert namespace.list("jobs") == []
