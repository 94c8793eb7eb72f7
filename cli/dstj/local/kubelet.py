"""Computes what the job controller and the kubelet make of a worker Job: pods, environment, mounts, status.  All pure.

Sources: kubernetes.io/docs/concepts/workloads/controllers/job (completion mode, pod failure policy)
and /docs/concepts/workloads/pods/downward-api (fieldRef).
"""

import re
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from deepseek_operator.jobs.profile import VARIABLE
from deepseek_trainer.contract.names import ENV_ACCELERATORS, ENV_FABRIC, ENV_NODE_INDEX
from deepseek_trainer.contract.times import rfc3339

Manifest = dict[str, Any]

INDEX_KEY = "batch.kubernetes.io/job-completion-index"  # annotation and label of the pods of an Indexed Job


def pod_of(job: Manifest, index: int, now: datetime) -> Manifest:
    """The pod of one completion index, as the job controller makes it."""
    template = job["spec"]["template"]
    meta = deepcopy(template.get("metadata", {}))
    host = f"{job['metadata']['name']}-{index}"
    name = job["metadata"]["name"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": job["metadata"]["uid"], "controller": True}
    meta |= {
        "name": host,
        "namespace": job["metadata"].get("namespace", "default"),
        "uid": f"{job['metadata']['uid']}-{index}",
        "creationTimestamp": rfc3339(now),
        "labels": meta.get("labels", {}) | {"batch.kubernetes.io/job-name": name, INDEX_KEY: str(index)},
        "annotations": meta.get("annotations", {}) | {INDEX_KEY: str(index)},
        "ownerReferences": [owner],
    }
    spec = deepcopy(template["spec"]) | {"hostname": host, "nodeName": "localhost"}
    status = {"phase": "Pending", "conditions": []}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


def index_of(pod: Manifest) -> int:
    return int(pod["metadata"]["annotations"][INDEX_KEY])


def environment(container: Manifest, pod: Manifest) -> dict[str, str]:
    """The environment of a container, without what is about the cluster's machines: its devices and its network."""
    given = {variable["name"]: variable["value"] for variable in container.get("env", ())}
    own = {name: value for name, value in given.items() if not _is_of_the_cluster(name)}
    return {ENV_NODE_INDEX: str(index_of(pod))} | own


def _is_of_the_cluster(variable: str) -> bool:
    return variable in {ENV_ACCELERATORS, ENV_FABRIC} or re.fullmatch(VARIABLE, variable) is not None


def field_of(pod: Manifest, path: str) -> str:
    """The value of a downward-API field such as metadata.labels['app']."""
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return str(pod["metadata"][match[1]].get(match[2], ""))
    value: Any = pod
    for part in path.split("."):
        value = value.get(part, "")
    return str(value)


@dataclass(frozen=True, slots=True)
class Mount:
    """A volume of the pod, and the path at which its containers see it."""

    volume: Manifest
    path: str


def mounts(pod: Manifest) -> Iterator[Mount]:
    """Every mount of the pod once.  On this machine its containers share them all."""
    volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", ())}
    containers = (*pod["spec"].get("initContainers", ()), *pod["spec"]["containers"])
    places = {mount["mountPath"]: volumes[mount["name"]] for c in containers for mount in c.get("volumeMounts", ())}
    return (Mount(volume, path) for path, volume in places.items())


def terminated(return_code: int, message: str, started: datetime, now: datetime) -> Manifest:
    """The state of a container whose process ended with `return_code`; negative, as in Popen, for a signal."""
    state: Manifest = {
        "exitCode": return_code if return_code >= 0 else 128 - return_code,
        "reason": "Error" if return_code else "Completed",
        "startedAt": rfc3339(started),
        "finishedAt": rfc3339(now),
    }
    if return_code < 0:
        state["signal"] = -return_code
    return {"terminated": state | ({"message": message} if message else {})}


def job_status(job: Manifest, pods: Sequence[Manifest], now: datetime) -> Manifest:
    """The status of an Indexed Job with backoffLimit 0, from its pods.

    As in Kubernetes since 1.31, FailureTarget comes at once, and Failed only after the last pod has left.
    """
    phases = [pod["status"]["phase"] for pod in _staying(pods)]
    active = sum(phase in ("Pending", "Running") for phase in phases)
    status: Manifest = {
        "startTime": job.get("status", {}).get("startTime", rfc3339(now)),
        "active": active,
        "ready": sum(_is_ready(pod) for pod in _staying(pods)),
        "succeeded": phases.count("Succeeded"),
        "failed": phases.count("Failed"),
        "terminating": len(pods) - len(phases),
    }
    return status | {"conditions": _conditions(job, pods, status, now)}


def _staying(pods: Sequence[Manifest]) -> list[Manifest]:
    return [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]


def _conditions(job: Manifest, pods: Sequence[Manifest], status: Manifest, now: datetime) -> list[Manifest]:
    if status["succeeded"] == job["spec"]["completions"]:
        return [_condition(kind, "CompletionsReached", "", now) for kind in ("SuccessCriteriaMet", "Complete")]
    failed = next((pod for pod in _staying(pods) if pod["status"]["phase"] == "Failed"), None)
    if failed is None:
        return []
    reason, message = _verdict(job, failed)
    kinds = ["FailureTarget"] if status["active"] or status["terminating"] else ["FailureTarget", "Failed"]
    return [_condition(kind, reason, message, now) for kind in kinds]


def _verdict(job: Manifest, pod: Manifest) -> tuple[str, str]:
    codes = [c["state"].get("terminated", {}).get("exitCode") for c in container_statuses(pod)]
    for rule in job["spec"].get("podFailurePolicy", {}).get("rules", ()):
        matches = rule.get("onExitCodes", {}).get("values", ())
        if rule["action"] == "FailJob" and any(code in matches for code in codes):
            return "PodFailurePolicy", f"{pod['metadata']['name']} ended with a code that a retry cannot help"
    return "BackoffLimitExceeded", "Job has reached the specified backoff limit"


def container_statuses(pod: Manifest) -> list[Manifest]:
    return [*pod["status"].get("initContainerStatuses", ()), *pod["status"].get("containerStatuses", ())]


def _is_ready(pod: Manifest) -> bool:
    return any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"]["conditions"])


def _condition(kind: str, reason: str, message: str, now: datetime) -> Manifest:
    return {"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": rfc3339(now)}
