"""What keeps pods from starting.  The operator reports it with a fix, and never restarts the attempt for it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from deepseek_operator.objects.observed import Manifest, WarningEvent
from deepseek_operator.objects.pods import has_machine
from deepseek_operator.objects.quota import QUOTA_FIX

QUOTA_EXCEEDED: Final = "QuotaExceeded"
UNSCHEDULABLE: Final = "Unschedulable"
NO_PRIORITY_CLASS: Final = "PriorityClassNotFound"
_IMAGE_FIX: Final = "check the image of the job or its profile, and that the machines may pull it"
_WAITING_FIXES: Final = {
    "ErrImagePull": _IMAGE_FIX,
    "ImagePullBackOff": _IMAGE_FIX,
    "InvalidImageName": _IMAGE_FIX,
    "ErrImageNeverPull": _IMAGE_FIX,
    "CreateContainerConfigError": "create what is missing; the pods then go on by themselves",
    "CreateContainerError": "look at `kubectl describe pod`",
}
_MOUNT_FIX: Final = "create the missing Secret, ConfigMap or claim; the pods then go on by themselves"
_SCHEDULE_FIX: Final = "free machines, create the missing claim, or ask for less in trainer.resourcesPerNode"
_PRIORITY_FIX: Final = (
    "create it, or set scheduling.priorityClassName to one of `kubectl get priorityclasses`; the job then goes on"
)
_CLAIM_FIX: Final = (
    "create that StorageClass, or mark one of `kubectl get storageclasses` as the default if the claim names none; the "
    "pods then go on by themselves.  For another class, delete the job and the claim, and apply the job anew"
)
_CLAIM: Final = "PersistentVolumeClaim"
_UNBOUND: Final = frozenset({"ProvisioningFailed", "FailedBinding"})


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
            reason, fix = _refusal(warning.message)
            return Blocker(reason, f"{warning.message}: {fix}")
    return None


def _refusal(message: str) -> tuple[str, str]:
    """The reason and the way out where the API server refuses pods."""
    if "exceeded quota" in message:
        return QUOTA_EXCEEDED, QUOTA_FIX
    if "no PriorityClass with name" in message:
        return NO_PRIORITY_CLASS, _PRIORITY_FIX
    return "PodsRefused", "an admission policy of the cluster refuses the pods"


def waits_for_claim(pod: Manifest) -> bool:
    """Whether a pod without a machine may wait for a claim.  Its condition says so, or there is none yet."""
    found = (c for c in pod.get("status", {}).get("conditions", ()) if c["type"] == "PodScheduled")
    message = next((c.get("message", "").lower() for c in found), None)
    return message is None or "persistentvolumeclaim" in message or "storageclass" in message


def claims_of(pod: Manifest) -> frozenset[str]:
    """The names of the claims that the pod mounts."""
    volumes = pod["spec"].get("volumes", ())
    return frozenset(volume[key]["claimName"] for volume in volumes if (key := "persistentVolumeClaim") in volume)


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
    unbound = _unbound(warnings) if not has_machine(pod) and waits_for_claim(pod) else None
    return unbound or _unscheduled(name, status) or _unmounted(name, warnings)


def _unbound(warnings: Iterable[WarningEvent]) -> Blocker | None:
    for warning in warnings:
        if warning.kind == _CLAIM and warning.reason in _UNBOUND:
            return Blocker(warning.reason, f"claim {warning.name}: {warning.message}: {_CLAIM_FIX}")
    return None


def _unscheduled(name: str, status: Manifest) -> Blocker | None:
    for condition in status.get("conditions", ()):
        is_scheduled = condition["type"] != "PodScheduled" or condition["status"] != "False"
        if not is_scheduled and condition.get("reason") in {UNSCHEDULABLE, "SchedulerError"}:
            return Blocker(condition["reason"], f"pod {name}: {condition.get('message', '')}: {_SCHEDULE_FIX}")
    return None


def _unmounted(name: str, warnings: Iterable[WarningEvent]) -> Blocker | None:
    for warning in warnings:
        if warning.name == name and warning.reason in {"FailedMount", "FailedAttachVolume"}:
            return Blocker(warning.reason, f"pod {name}: {warning.message}: {_MOUNT_FIX}")
    return None
