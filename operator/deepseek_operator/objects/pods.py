"""What the manifest of a pod says about the pod."""

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
    """The time at which the pod's machine stopped answering, as RFC 3339, or None while it answers.

    A kubelet always writes the same value to Ready and ContainersReady of a pod without readiness gates.  When a
    machine goes silent, the node controller sets Ready alone to False.
    """
    ready, containers = _condition(pod, "Ready"), _condition(pod, "ContainersReady")
    if is_finished(pod) or (ready.get("status"), containers.get("status")) != ("False", "True"):
        return None
    return str(ready.get("lastTransitionTime", ""))


def writers(pods: Sequence[Manifest], num_nodes: int) -> list[Manifest]:
    """Those pods of one attempt that can still write to the volume.

    A lost pod may still run behind a broken network.  But ranks save nothing once they lack a peer.
    """
    unfinished = [pod for pod in pods if not is_finished(pod)]
    is_broken = len(unfinished) < num_nodes and all(is_lost(pod) for pod in unfinished)
    return [] if is_broken else unfinished


def _condition(pod: Manifest, type_: str) -> Manifest:
    conditions = pod.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == type_), {})
