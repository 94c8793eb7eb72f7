"""Does the cluster do what the project's tests expect of it?  Each check says how long it took."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import api
import images
import lifecycle
import machines
from layout import HERE, NODES, VOLUMES
from shell import ClusterError, say, wait_until

NAMESPACE = "smoke"
POD = {"labelSelector": {"matchLabels": {"app": "smoke"}}, "topologyKey": "kubernetes.io/hostname"}


def run_all() -> None:
    image = images.base_image()
    for node in NODES:
        images.give(node, images.inspect(image), (image,))
    lifecycle.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found")
    try:
        check_pods(image)
        check_volume_goes_with_its_claim()
        check_node_loss()
    finally:
        lifecycle.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")


def check_pods(image: str) -> None:
    with timed("two pods reach each other, a shared volume and the API server", limit_s=30):
        lifecycle.kubectl(
            "apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects(image)})
        )
        wait_until("both pods are done with their work", lambda: all(said(index) for index in (0, 1)), 60)
    for index in (0, 1):
        say(f"  logs of pod {index}: {said(index)}")
    with timed("kubectl exec"):
        lifecycle.kubectl("exec", "-n", NAMESPACE, pods()[0], "--", "python3", "-c", "open('/shared/go', 'x').close()")
    with timed("the job completes"):
        lifecycle.kubectl("wait", "-n", NAMESPACE, "--for=condition=Complete", "job/smoke", "--timeout=30s")
    spread = {pod["spec"]["nodeName"] for pod in pod_list()}
    if spread != {node.name for node in NODES}:
        raise ClusterError(f"the pods ran on {sorted(spread)}, not on both nodes")


def check_volume_goes_with_its_claim() -> None:
    with timed("a deleted claim's directory goes"):
        lifecycle.kubectl("delete", "-n", NAMESPACE, "job/smoke", "pvc/shared")
        wait_until("no volume is left", lambda: not any(VOLUMES.iterdir()), 20)


def check_node_loss() -> None:
    lost = NODES[1]
    machines.power_off(lost)
    with timed(f"{lost.name} loses its power and is seen as lost", limit_s=60):
        wait_until(f"{lost.name} is not ready", lambda: not lifecycle.is_ready(lost), 60)
    with timed(f"{lost.name} is back"):
        lifecycle.start_node(lost)
        lifecycle.await_node(lost)


def said(index: int) -> str:
    """The pod's line, empty until it is written."""
    names = [pod["metadata"]["name"] for pod in pod_list() if f"smoke-{index}-" in pod["metadata"]["name"]]
    status, text = api.request("GET", f"/api/v1/namespaces/{NAMESPACE}/pods/{names[0]}/log") if names else (0, "")
    return str(text).strip() if status == 200 else ""


def pods() -> list[str]:
    return [pod["metadata"]["name"] for pod in pod_list()]


def pod_list() -> list[dict[str, Any]]:
    found = api.get(f"/api/v1/namespaces/{NAMESPACE}/pods")
    return list(found["items"]) if found else []


@contextmanager
def timed(what: str, limit_s: float = 60) -> Iterator[None]:
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    if took > limit_s:
        raise ClusterError(f"{what}: took {took:.1f} s, at most {limit_s:.0f} s is right")
    say(f"{took:5.1f} s  {what}")


def objects(image: str) -> list[dict[str, object]]:
    restricted = {"pod-security.kubernetes.io/enforce": "restricted"}
    metadata = {"namespace": NAMESPACE, "name": "smoke"}
    return [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": restricted}},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": headless()},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": metadata | {"name": "shared"},
            "spec": claim(),
        },
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job(image)},
    ]


def headless() -> dict[str, object]:
    return {"clusterIP": "None", "selector": {"app": "smoke"}, "publishNotReadyAddresses": True}


def claim() -> dict[str, object]:
    return {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Mi"}}}


def job(image: str) -> dict[str, object]:
    template = {"metadata": {"labels": {"app": "smoke"}}, "spec": pod(image)}
    return {"completions": 2, "parallelism": 2, "completionMode": "Indexed", "backoffLimit": 0, "template": template}


def pod(image: str) -> dict[str, object]:
    container = {
        "name": "smoke",
        "image": image,
        "command": ["python3", "-c", (HERE / "smoke_pod.py").read_text()],
        "resources": {"limits": {"nvidia.com/gpu": "2"}},
        "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    return {
        "subdomain": "smoke",
        "restartPolicy": "Never",
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [POD]}},
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}}],
        "containers": [container],
    }
