"""What keeps pods from starting.  The operator reports it with a fix, and never restarts the attempt for it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from deepseek_operator.objects.observed import Manifest, WarningEvent
from deepseek_operator.objects.quota import QUOTA_FIX

QUOTA_EXCEEDED: Final = "QuotaExceeded"
_IMAGE_FIX: Final = "check the image of the job or its profile, and that the machines may pull it"
_WAITING_FIXES: Final = {
    "ErrImagePull": _IMAGE_FIX,
    "ImagePullBackOff": _IMAGE_FIX,
    "InvalidImageName": _IMAGE_FIX,
    "ErrImageNeverPull": _IMAGE_FIX,
    "CreateContainerConfigError": "create what is missing; the pods then go on by themselves",
    "CreateContainerError": "look at `kubectl describe pod`",
}
_MOUNT_FIX: Final = "create the missing Secret or claim; the pods then go on by themselves"
_SCHEDULE_FIX: Final = "free machines, create the missing claim, or ask for less in trainer.resourcesPerNode"


@dataclass(frozen=True, slots=True)
class Blocker:
    reason: str  # CamelCase, for a condition
    message: str  # what is wrong, and the way out


def blocker_of(pods: Iterable[Manifest], warnings: Iterable[WarningEvent], desired: int) -> Blocker | None:
    """The first thing that is known to keep the pods of an attempt from starting, or None."""
    pods, warnings = tuple(pods), tuple(warnings)
    refused = _refused(warnings) if len(pods) < desired else None
    return refused or next((blocker for pod in pods if (blocker := _of_pod(pod, warnings))), None)


def _refused(warnings: Iterable[WarningEvent]) -> Blocker | None:
    for warning in warnings:
        if warning.kind == "Job" and warning.reason == "FailedCreate":
            over_quota = "exceeded quota" in warning.message
            fix = QUOTA_FIX if over_quota else "an admission policy of the cluster refuses the pods"
            return Blocker(QUOTA_EXCEEDED if over_quota else "PodsRefused", f"{warning.message}: {fix}")
    return None


def _of_pod(pod: Manifest, warnings: Iterable[WarningEvent]) -> Blocker | None:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    states = [
        container.get("state", {})
        for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ()))
    ]
    for state in states:
        waiting = state.get("waiting", {})
        if fix := _WAITING_FIXES.get(waiting.get("reason", "")):
            return Blocker(waiting["reason"], f"pod {name}: {waiting.get('message') or waiting['reason']}: {fix}")
    if any("running" in state or "terminated" in state for state in states):
        return None  # it has started, so warnings about it are history
    return _unscheduled(name, status) or _unmounted(name, warnings)


def _unscheduled(name: str, status: Manifest) -> Blocker | None:
    for condition in status.get("conditions", ()):
        if (condition["type"], condition["status"], condition.get("reason")) == (
            "PodScheduled",
            "False",
            "Unschedulable",
        ):
            return Blocker("Unschedulable", f"pod {name}: {condition.get('message', '')}: {_SCHEDULE_FIX}")
    return None


def _unmounted(name: str, warnings: Iterable[WarningEvent]) -> Blocker | None:
    for warning in warnings:
        if warning.name == name and warning.reason in {"FailedMount", "FailedAttachVolume"}:
            return Blocker(warning.reason, f"pod {name}: {warning.message}: {_MOUNT_FIX}")
    return None
