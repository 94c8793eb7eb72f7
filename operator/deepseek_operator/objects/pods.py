"""What a pod's manifest says about the pod."""

from collections.abc import Sequence

from deepseek_operator.objects.observed import Manifest


def is_finished(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def has_machine(pod: Manifest) -> bool:
    return bool(pod.get("spec", {}).get("nodeName"))


def is_ready(pod: Manifest) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and _condition(pod, "Ready").get("status") == "True"


def is_lost(pod: Manifest) -> bool:
    return lost_since(pod) is not None


def lost_since(pod: Manifest) -> str | None:
    """When the pod's machine was seen to answer no longer, RFC 3339; None while it does.

    A kubelet always writes Ready and ContainersReady alike for a pod without readiness gates; of a
    machine that went silent the node controller takes back Ready only.
    """
    ready, containers = _condition(pod, "Ready"), _condition(pod, "ContainersReady")
    if is_finished(pod) or (ready.get("status"), containers.get("status")) != ("False", "True"):
        return None
    return str(ready.get("lastTransitionTime", ""))


def writers(pods: Sequence[Manifest], num_nodes: int) -> list[Manifest]:
    """Of the pods of one attempt those that can still write to the volume.

    Lost ones may well run on behind a broken network, but ranks that lack one of their peers save nothing.
    """
    unfinished = [pod for pod in pods if not is_finished(pod)]
    is_broken = len(unfinished) < num_nodes and all(is_lost(pod) for pod in unfinished)
    return [] if is_broken else unfinished


def _condition(pod: Manifest, type_: str) -> Manifest:
    conditions = pod.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == type_), {})
