"""What the platform team decides in a TrainingProfile, seen on the pods, the policy and the machines of a job."""

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml

from deepseek_operator.api.names import API_VERSION
from deepseek_operator.jobs.resources import GPU
from support.builders.operator import merged
from support.cluster import kube
from support.cluster.kube import Manifest, Namespace, TrainingJob, a_job, example
from support.cluster.obstacles import NO_IMAGE, told

POOL = "e2e.dstj.io/pool"
EGRESS = {"cidr": "203.0.113.0/24", "ports": [443, 8443]}
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
SMALL = {"requests": {"cpu": "100m", "memory": "64Mi"}}
# A registry that lets nobody in, and says who knocked.
REGISTRY = """
import http.server
class Closed(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        known = self.headers.get("Authorization", "")
        self.send_response(404 if known else 401)
        self.send_header("WWW-Authenticate", 'Basic realm="e2e"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        known and print(known, flush=True)
    do_HEAD = do_GET
http.server.HTTPServer(("127.0.0.1", 5055), Closed).serve_forever()
"""
# What the kernel lets a process do that its pod gave a capability.
CAPABILITIES = 'import re; print(re.search(r"CapEff:\\s*(\\w+)", open("/proc/self/status").read())[1])'


@pytest.fixture
def pool(namespace: Namespace) -> Iterator[str]:
    """A machine that takes no pods but those that tolerate it, as those with GPUs often are; its name."""
    kube.kubectl("label", "node", "node-1", f"{POOL}={namespace.name}")
    kube.kubectl("taint", "node", "node-1", f"{POOL}={namespace.name}:NoSchedule")
    yield "node-1"
    kube.kubectl("taint", "node", "node-1", f"{POOL}-")
    kube.kubectl("label", "node", "node-1", f"{POOL}-")


@contextmanager
def profiled(namespace: Namespace, **spec: Any) -> Iterator[str]:
    """A profile of the namespace's name, with an image that exists nowhere unless `spec` has another."""
    kube.apply(a_profile(namespace.name, spec))
    yield namespace.name
    kube.kubectl("delete", "trainingprofile", namespace.name)


def a_profile(name: str, spec: Manifest) -> Manifest:
    spec = {"image": NO_IMAGE, "resourcesPerNode": SMALL} | spec
    return {"apiVersion": API_VERSION, "kind": "TrainingProfile", "metadata": {"name": name}, "spec": spec}


def picking(namespace: Namespace, name: str, changes: Manifest | None = None) -> TrainingJob:
    """A job of the namespace's profile, with its data at hand."""
    namespace.claim("texts")
    picked = {"trainer": {"image": None, "profile": namespace.name}, "data": {"train": {"claimName": "texts"}}}
    return TrainingJob(namespace, a_job(name, merged(picked, changes or {})))


def pods_of(job: TrainingJob, count: int = 2) -> list[Manifest]:
    return kube.wait_until(
        f"{count} pods: {job.status}", lambda: job.pods if len(job.pods) == count else None, timeout_s=60
    )


def on_machines(job: TrainingJob, count: int = 2) -> list[Manifest]:
    def placed() -> list[Manifest] | None:
        return job.pods if sum(bool(pod["spec"].get("nodeName")) for pod in job.pods) == count else None

    return kube.wait_until(f"{count} pods on machines: {job.status}", placed, timeout_s=60)


def warned_of(namespace: Namespace, text: str) -> str:
    def found() -> str | None:
        messages = (event["message"] for event in namespace.list("events"))
        return next((message for message in messages if text in message), None)

    return kube.wait_until(f"an event that says {text!r}", found, timeout_s=60)


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
    job = picking(namespace, "picks")
    for pod in on_machines(job):
        assert pod["spec"]["nodeName"] == pool
        assert pod["spec"]["nodeSelector"] == {POOL: gpu_profile}
        assert POOL in {toleration.get("key") for toleration in pod["spec"]["tolerations"]}
        assert kube.gpus_of(pod) == ("1", "1")
        assert pod["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "8", "memory": "32Gi", GPU: "1"}
    policy = namespace.get("networkpolicies", "dstj-picks")
    assert policy is not None
    ports = [{"port": port, "protocol": "TCP"} for port in EGRESS["ports"]]
    assert {"to": [{"ipBlock": {"cidr": EGRESS["cidr"]}}], "ports": ports} in policy["spec"]["egress"]


def test_a_job_with_another_number_of_processes_than_its_profile_has_gpus_is_told(
    namespace: Namespace, gpu_profile: str
) -> None:
    trainer = {"image": None, "profile": gpu_profile, "numProcPerNode": 2}
    job = TrainingJob(namespace, a_job("two", {"trainer": trainer}))
    kube.wait_until("its refusal", lambda: (job.condition("Accepted") or {}).get("status") == "False", 20)
    assert f"must equal {GPU} of TrainingProfile '{gpu_profile}', which is 1, not 2" in job.status["message"]
    assert namespace.list("jobs") == []


def test_the_accelerator_of_a_profile_is_given_to_both_containers_beside_the_jobs_own_resources(
    namespace: Namespace,
) -> None:
    with profiled(namespace, accelerator={"count": 2}):
        own = {"numProcPerNode": 2, "resourcesPerNode": {"limits": {"cpu": "1"}}}
        job = picking(namespace, "own", {"trainer": own})
        for pod in on_machines(job):
            assert kube.gpus_of(pod) == ("2", "2")
            assert pod["spec"]["containers"][0]["resources"]["limits"] == {"cpu": "1", GPU: "2"}


def test_gpus_that_torch_cannot_use_end_the_job_before_it_prepares_data(namespace: Namespace, images: Any) -> None:
    """The machines of the test cluster hand out GPUs that are not there, as those without a driver do."""
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    with profiled(namespace, image=images.trainer, accelerator={"count": 1}):
        trainer = {"profile": namespace.name, "numNodes": 1}
        job = TrainingJob(namespace, example("pretrain-tiny", trainer=trainer))
        failure = job.wait_for("Failed")["lastFailure"]
        assert (failure["exitCode"], failure["reason"]) == (64, "Config")
        assert f"torch sees 0 of the 1 {GPU} that the pod asked for" in failure["message"]
        assert "set runtimeClassName in the TrainingProfile" in failure["message"]
        assert list(job.work.iterdir()) == []
        assert job.status["attempt"] == 1


def test_labels_annotations_and_settings_are_on_the_pods_those_of_the_job_too(namespace: Namespace) -> None:
    metadata = {"labels": {"team": "platform"}, "annotations": {"sidecar.istio.io/inject": "true", "note": "ours"}}
    env = [{"name": "NCCL_IB_HCA", "value": "mlx5_0:1"}]
    with profiled(namespace, podMetadata=metadata, podMetadataPrefixes=["sidecar.istio.io/"], env=env):
        own = {"annotations": {"sidecar.istio.io/inject": "false"}}
        for pod in pods_of(picking(namespace, "labelled", {"trainer": {"podMetadata": own}})):
            assert pod["metadata"]["labels"]["team"] == "platform"
            annotations = pod["metadata"]["annotations"]
            assert (annotations["sidecar.istio.io/inject"], annotations["note"]) == ("false", "ours")
            for container in (*pod["spec"]["initContainers"], *pod["spec"]["containers"]):
                assert env[0] in container["env"]


def test_a_job_that_asks_for_more_than_its_profile_gives_is_told_all_of_it(namespace: Namespace) -> None:
    with profiled(namespace, limits={"maxNodes": 1, "maxVolumeSize": "10Gi"}):
        job = picking(namespace, "greedy", {"trainer": {"podMetadata": {"labels": {"team": "a"}}}})
        kube.wait_until("its refusal", lambda: (job.condition("Accepted") or {}).get("status") == "False", 20)
        assert (job.condition("Accepted") or {})["reason"] == "ProfileMismatch"
        for problem in ("numNodes: 2 is more than 1", "volume.size: 100Gi is more than 10Gi", "not 'team'"):
            assert problem in job.status["message"]
        assert namespace.list("jobs") == []


def test_machines_are_chosen_by_the_profiles_affinity(namespace: Namespace) -> None:
    requirement = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": ["node-0"]}
    affinity = {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [requirement]}]}}}
    with profiled(namespace, affinity=affinity):
        assert {pod["spec"]["nodeName"] for pod in on_machines(picking(namespace, "choosy"))} == {"node-1"}


def test_pods_that_must_spread_wait_for_a_machine_of_their_own(namespace: Namespace) -> None:
    spread = [{"topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}]
    with profiled(namespace, topologySpread=spread):
        machines = [pod["spec"]["nodeName"] for pod in on_machines(picking(namespace, "spread"))]
        assert sorted(machines) == ["node-0", "node-1"]


def test_pods_whose_volume_is_for_one_machine_run_on_one(namespace: Namespace) -> None:
    with profiled(namespace):
        once = {"trainer": {"numNodes": 4}, "checkpoint": {"volume": {"accessMode": "ReadWriteOnce", "size": "1Gi"}}}
        job = picking(namespace, "together", once)
        assert len({pod["spec"]["nodeName"] for pod in on_machines(job, 4)}) == 1
        claim = namespace.get("persistentvolumeclaims", "dstj-together") or {}
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_the_claim_of_a_job_of_one_node_is_for_one_machine(namespace: Namespace) -> None:
    with profiled(namespace):
        on_machines(picking(namespace, "single", {"trainer": {"numNodes": 1}}), 1)
        claim = namespace.get("persistentvolumeclaims", "dstj-single") or {}
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_pods_of_another_scheduler_are_left_to_it(namespace: Namespace) -> None:
    with profiled(namespace, schedulerName="packer"):
        job = picking(namespace, "packed")
        pods_of(job)
        kube.wait_until("the status says that they wait", lambda: job.status.get("phase") == "Starting", 30)
        assert [(pod["spec"]["schedulerName"], pod["spec"].get("nodeName")) for pod in job.pods] == [
            ("packer", None)
        ] * 2


@pytest.mark.parametrize(("handler", "told_by"), [("runc", "ErrImagePull"), ("no-such-runtime", "no-such-runtime")])
def test_the_kubelet_runs_pods_by_the_runtime_class_of_the_profile(
    namespace: Namespace, handler: str, told_by: str
) -> None:
    """With a runtime that is there, the kubelet gets as far as to pull the image."""
    runtime_class = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": namespace.name}}
    kube.apply(runtime_class | {"handler": handler})
    try:
        with profiled(namespace, runtimeClassName=namespace.name):
            (pod,) = on_machines(picking(namespace, "runs", {"trainer": {"numNodes": 1}}), 1)
            assert pod["spec"]["runtimeClassName"] == namespace.name
            assert told_by in warned_of(namespace, told_by)
    finally:
        kube.kubectl("delete", "runtimeclass", namespace.name)


def test_the_kubelet_knocks_at_the_registry_with_the_secret_of_the_profile(namespace: Namespace) -> None:
    login = base64.b64encode(b"puller:secret").decode()
    content = base64.b64encode(json.dumps({"auths": {"localhost:5055": {"auth": login}}}).encode()).decode()
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson"}
    namespace.apply(secret | {"metadata": {"name": "registry"}, "data": {".dockerconfigjson": content}})
    image = "localhost:5055/private@sha256:" + "0" * 64
    with (
        registry_on("node-1") as knocks,
        profiled(
            namespace,
            image=image,
            imagePullSecrets=[{"name": "registry"}],
            nodeSelector={"kubernetes.io/hostname": "node-1"},
        ),
    ):
        job = picking(namespace, "private", {"trainer": {"numNodes": 1}})
        assert "localhost:5055/private" in told(job, "ErrImagePull", "ImagePullBackOff")
        assert knocks.stdout is not None
        assert knocks.stdout.readline().strip() == f"Basic {login}"


@contextmanager
def registry_on(node: str) -> Iterator[subprocess.Popen[str]]:
    """A registry on the loopback of a node, where containerd asks in the clear."""
    command = ["nsenter", f"--net=/run/netns/dstj-{node}", sys.executable, "-c", REGISTRY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_job_trains_as_the_user_that_the_namespace_gives(namespace: Namespace, images: Any) -> None:
    """Here nobody gives one, so it is the image's; no group owns the volumes."""
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    spec = kube.profile(namespace.name, images.trainer)["spec"] | {"security": {"userFrom": "Namespace"}}
    with profiled(namespace, **spec):
        brief = {"optimization": {"maxSteps": 4}, "evaluation": {"generations": 0, "maxRows": 8}}
        job = TrainingJob(
            namespace, example("pretrain-tiny", trainer={"profile": namespace.name, "numNodes": 1}, **brief)
        )
        (pod,) = pods_of(job, 1)
        assert pod["spec"]["securityContext"].keys() == {"runAsNonRoot", "fsGroupChangePolicy", "seccompProfile"}
        job.wait_for("Succeeded", 300)


def test_ipc_lock_gives_a_user_nothing(namespace: Namespace, images: Any) -> None:
    """Why pods with RDMA get no capability: docs/decisions/0016."""
    kube.kubectl("label", "namespace", namespace.name, "--overwrite", "pod-security.kubernetes.io/enforce=privileged")
    security = {
        "runAsUser": 10001,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"], "add": ["IPC_LOCK"]},
    }
    container = {"name": "asks", "image": images.trainer, "command": ["python", "-c", CAPABILITIES]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "asks"}}
    spec = {"restartPolicy": "Never", "containers": [container | {"securityContext": security}]}
    namespace.apply(pod | {"spec": spec})
    namespace.kubectl("wait", "pod/asks", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=120s")
    assert int(namespace.kubectl("logs", "asks"), 16) == 0
