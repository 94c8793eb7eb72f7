"""What the manifest of a pod says about the pod.

A cluster may inject containers beside ours.  So whoever asks whether work has begun or ended names the container that
does the work.
"""

from collections.abc import Iterator, Sequence
from typing import Final

from deepseek_operator.objects.observed import Manifest

_TURNED_AWAY: Final = "The node had condition"  # so a kubelet's message begins if it never let an evicted pod start


def is_finished(pod: Manifest) -> bool:
    return pod.get("status", {}).get("phase") in {"Succeeded", "Failed"}


def has_machine(pod: Manifest) -> bool:
    return bool(pod.get("spec", {}).get("nodeName"))


def is_ready(pod: Manifest, container: str) -> bool:
    """Whether the container serves.  A pod without any report about its containers is judged as a whole."""
    if "deletionTimestamp" in pod["metadata"] or is_lost(pod):
        return False
    status = _status_of(pod, container)
    return bool(status.get("ready")) if status else _condition(pod, "Ready").get("status") == "True"


def end_of(pod: Manifest, container: str) -> Manifest | None:
    """How the container ended, or None while it has not.  It has not ended if it starts again."""
    ended: Manifest | None = _status_of(pod, container).get("state", {}).get("terminated")
    return ended


def has_succeeded(pod: Manifest, container: str) -> bool:
    ended = end_of(pod, container)
    return ended.get("exitCode") == 0 if ended else pod.get("status", {}).get("phase") == "Succeeded"


def has_started(pod: Manifest) -> bool:
    """Whether a container of the pod has ever run."""
    status = pod.get("status", {})
    states = [each.get(field, {}) for each in containers_of(pod) for field in ("state", "lastState")]
    if any("running" in state or "terminated" in state for state in states) or is_evicted(pod):
        return True
    return not states and status.get("phase") in {"Running", "Succeeded"}


def is_evicted(pod: Manifest) -> bool:
    """Whether a kubelet ended the pod.  It does so for a pod's own limits, and for room, which a condition tells."""
    status = pod.get("status", {})
    return status.get("reason") == "Evicted" and not status.get("message", "").startswith(_TURNED_AWAY)


def is_running(pod: Manifest) -> bool:
    """Whether the pod has started, is to go on, and has not ended."""
    return has_started(pod) and not is_finished(pod) and not is_lost(pod) and "deletionTimestamp" not in pod["metadata"]


def containers_of(pod: Manifest) -> Iterator[Manifest]:
    """The statuses of all containers of the pod, those that run before the others first."""
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses", ())
    yield from status.get("containerStatuses", ())


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


def _status_of(pod: Manifest, container: str) -> Manifest:
    statuses: Sequence[Manifest] = pod.get("status", {}).get("containerStatuses", ())
    return next((status for status in statuses if status.get("name") == container), {})


def _condition(pod: Manifest, type_: str) -> Manifest:
    conditions = pod.get("status", {}).get("conditions", ())
    return next((condition for condition in conditions if condition["type"] == type_), {})
