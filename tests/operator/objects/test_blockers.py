"""What keeps pods from starting, with its fix."""

import pytest

from deepseek_operator.objects.blockers import blocker_of
from deepseek_operator.objects.observed import Manifest, WarningEvent
from support.builders.operator import a_pod, a_warning

POD = "demo-a1-0-xxxxx"


NOT_FOUND = 'storageclass.storage.k8s.io "fast" not found'
NO_CLAIM = "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims"


def unplaced(*conditions: Manifest) -> Manifest:
    return a_pod(0, "Pending", machine=None, conditions=conditions)


def unscheduled(message: str, reason: str = "Unschedulable") -> Manifest:
    return unplaced({"type": "PodScheduled", "status": "False", "reason": reason, "message": message})


def of_claim(reason: str, message: str) -> WarningEvent:
    return WarningEvent("PersistentVolumeClaim", "dstj-demo", reason, message)


def pending(*, waiting: str = "", message: str = "", unschedulable: str = "", init: str = "") -> Manifest:
    status: Manifest = {}
    if waiting:
        status["containerStatuses"] = [{"state": {"waiting": {"reason": waiting, "message": message}}}]
    if init:
        status["initContainerStatuses"] = [{"state": {init: {}}}]
    if unschedulable:
        reason = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": unschedulable}
        status["conditions"] = (reason,)
    return a_pod(0, "Pending", **status)


@pytest.mark.parametrize(
    ("pods", "warnings", "reason", "words"),
    [
        ([pending(waiting="ImagePullBackOff", message="not found")], [], "ImagePullBackOff", "check the image"),
        ([pending(waiting="ErrImagePull")], [], "ErrImagePull", "check the image"),
        (
            [pending(waiting="CreateContainerConfigError", message='secret "k" not found')],
            [],
            "CreateContainerConfigError",
            '"k"',
        ),
        ([pending(unschedulable="0/3 nodes are available")], [], "Unschedulable", "resourcesPerNode"),
        ([pending()], [a_warning("FailedMount", 'secret "kek" not found', kind="Pod", name=POD)], "FailedMount", "kek"),
        ([], [a_warning("FailedCreate", "exceeded quota: team")], "QuotaExceeded", "raise the ResourceQuota"),
        ([], [a_warning("FailedCreate", "violates PodSecurity")], "PodsRefused", "admission policy"),
        (
            [],
            [a_warning("FailedCreate", "pods are forbidden: no PriorityClass with name high was found")],
            "PriorityClassNotFound",
            "name high was found: create it, or set scheduling.priorityClassName",
        ),
        *(
            (
                [pod],
                [of_claim("ProvisioningFailed", NOT_FOUND)],
                "ProvisioningFailed",
                f"claim dstj-demo: {NOT_FOUND}: create",
            )
            for pod in (
                unscheduled(NO_CLAIM),
                unscheduled(f"running PreFilter: {NOT_FOUND}", "SchedulerError"),
                unplaced(),
            )
        ),
        (
            [unscheduled(NO_CLAIM)],
            [of_claim("FailedBinding", "no persistent volumes available and no storage class is set")],
            "FailedBinding",
            "mark one of `kubectl get storageclasses` as the default",
        ),
        ([unscheduled(NO_CLAIM)], [of_claim("ExternalProvisioning", "waiting")], "Unschedulable", "unbound"),
        ([unscheduled("0/3 nodes: Insufficient cpu")], [of_claim("ProvisioningFailed", "old")], "Unschedulable", "cpu"),
        ([unscheduled("no such thing", "SchedulerError")], [], "SchedulerError", "no such thing"),
    ],
)
def test_a_blocker_names_what_is_wrong_and_the_way_out(
    pods: list[Manifest], warnings: list[WarningEvent], reason: str, words: str
) -> None:
    blocker = blocker_of(pods, warnings, desired=1)
    assert blocker is not None
    assert blocker.reason == reason
    assert words in blocker.message


@pytest.mark.parametrize(
    ("pods", "warnings"),
    [
        pytest.param([pending(waiting="ContainerCreating")], [], id="on-its-way"),
        pytest.param([pending()], [a_warning("BackOff", "?", kind="Pod", name=POD)], id="unknown-warning"),
        pytest.param([a_pod()], [a_warning("FailedCreate", "exceeded quota")], id="quota-was-raised"),
        pytest.param([pending()], [a_warning("FailedMount", "?", kind="Pod", name="demo-a1-1-xxxxx")], id="other-pod"),
        pytest.param(
            [pending(init="running")],
            [a_warning("FailedMount", "?", kind="Pod", name=POD)],
            id="mounted-in-the-meantime",
        ),
    ],
)
def test_what_passes_by_itself_is_no_blocker(pods: list[Manifest], warnings: list[WarningEvent]) -> None:
    assert blocker_of(pods, warnings, desired=1) is None
