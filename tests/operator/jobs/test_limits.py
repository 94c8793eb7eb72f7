"""A job is held to its profile: the accelerators, the metadata of pods, and the most that it may ask for."""

from typing import Any

import pytest

from deepseek_operator.jobs.limits import profile_mismatch, resources_of
from support.builders.operator import a_profile, a_spec, merged

PICKED = {"trainer": {"image": None, "profile": "h100"}, "optimization": {"globalBatchSize": 16}}


def mismatch(profile: dict[str, Any], **job: Any) -> str | None:
    return profile_mismatch(a_spec(**merged(PICKED, job)), a_profile(**profile))


def limited(**limits: Any) -> dict[str, Any]:
    return {"limits": limits}


def resources(**limits: Any) -> dict[str, Any]:
    return {"trainer": {"resourcesPerNode": {"limits": limits}}}


def volume(**fields: Any) -> dict[str, Any]:
    return {"checkpoint": {"volume": fields}}


def priority(name: str) -> dict[str, Any]:
    return {"scheduling": {"priorityClassName": name}}


PAIR = {"accelerator": {"resourceName": "nvidia.com/mig-1g.10gb", "count": 2}}
ROCM = {"accelerator": {"resourceName": "amd.com/gpu", "count": 8}}


@pytest.mark.parametrize(
    ("profile", "job", "message"),
    [
        (
            limited(maxNodes=1),
            {},
            "spec.trainer.numNodes: 2 is more than 1, the most of TrainingProfile 'h100': ask for less, or",
        ),
        (
            limited(maxResourcesPerNode={"memory": "64Gi"}),
            resources(memory="65Gi"),
            "spec.trainer.resourcesPerNode.limits: memory: 65Gi is more than 64Gi, the most of TrainingProfile",
        ),
        (
            limited(maxResourcesPerNode={"cpu": 8}),
            resources(memory="1Gi"),
            "spec.trainer.resourcesPerNode.limits: cpu is not limited, so it is more than 8",
        ),
        (
            limited(maxResourcesPerNode={"nvidia.com/gpu": 1}),
            merged(resources(**{"nvidia.com/gpu": 2}), {"trainer": {"numProcPerNode": 2}}),
            "nvidia.com/gpu: 2 is more than 1",
        ),
        (
            limited(priorityClassNames=["low", "high"]),
            priority("urgent"),
            "spec.scheduling.priorityClassName: 'urgent' is none that TrainingProfile 'h100' allows: "
            "use one of low, high, or none",
        ),
        (limited(priorityClassNames=[]), priority("urgent"), "allows: name none"),
        (
            limited(storageClassNames=["fast"]),
            volume(storageClassName="slow"),
            "spec.checkpoint.volume.storageClassName: 'slow' is none that TrainingProfile 'h100' allows",
        ),
        (
            limited(maxVolumeSize="50Gi"),
            {},
            "spec.checkpoint.volume.size: 100Gi is more than 50Gi, the most of TrainingProfile 'h100'",
        ),
        (
            PAIR,
            {},
            "numProcPerNode: must equal nvidia.com/mig-1g.10gb of TrainingProfile 'h100', which is 2, not 1",
        ),
        (
            ROCM,
            {"trainer": {"numProcPerNode": 2}},
            "must equal amd.com/gpu of TrainingProfile 'h100', which is 8, not 2",
        ),
        (
            ROCM,
            merged(resources(**{"nvidia.com/gpu": 8}), {"trainer": {"numProcPerNode": 8}}),
            "resourcesPerNode: nvidia.com/gpu is not the accelerator of TrainingProfile 'h100', amd.com/gpu: leave",
        ),
        (
            {"podMetadataPrefixes": ["sidecar.istio.io/"]},
            {"trainer": {"podMetadata": {"annotations": {"sidecar.istio.io/inject": "false", "team": "a"}}}},
            "spec.trainer.podMetadata: TrainingProfile 'h100' lets a job set only keys that begin with "
            "sidecar.istio.io/, not 'team': leave them out, or ask the platform team for podMetadataPrefixes",
        ),
        (
            {},
            {"trainer": {"podMetadata": {"labels": {"team": "a"}}}},
            "lets a job set no labels or annotations, not 'team'",
        ),
    ],
)
def test_a_job_that_asks_for_more_than_its_profile_gives_is_told_value_rule_and_way_out(
    profile: dict[str, Any], job: dict[str, Any], message: str
) -> None:
    problem = mismatch(profile, **job)
    assert problem is not None
    assert message in problem


@pytest.mark.parametrize(
    ("profile", "job"),
    [
        (limited(maxNodes=2), {}),
        (limited(maxResourcesPerNode={"memory": "64Gi", "nvidia.com/gpu": 8}), resources(memory="65536Mi")),
        (limited(maxResourcesPerNode={"cpu": 8}), {}),  # the profile's own resources
        (limited(priorityClassNames=["low"]), priority("low")),
        (limited(priorityClassNames=[], storageClassNames=[]), {}),
        (limited(maxVolumeSize="50Gi"), volume(size="50Gi")),
        (limited(maxVolumeSize="50Gi"), volume(claimName="mine")),  # its size was somebody else's choice
        (PAIR, {"trainer": {"numProcPerNode": 2}}),
        (ROCM, merged(resources(cpu=8), {"trainer": {"numProcPerNode": 8}})),
        (
            {"podMetadataPrefixes": ["sidecar.istio.io/"]},
            {"trainer": {"podMetadata": {"annotations": {"sidecar.istio.io/inject": "false"}}}},
        ),
    ],
)
def test_a_job_that_keeps_to_its_profile_is_taken(profile: dict[str, Any], job: dict[str, Any]) -> None:
    assert mismatch(profile, **job) is None


def test_everything_that_is_too_much_is_told_at_once() -> None:
    problem = mismatch(limited(maxNodes=1, priorityClassNames=[]), **priority("urgent")) or ""
    assert "spec.trainer.numNodes" in problem
    assert "spec.scheduling.priorityClassName" in problem


def test_the_accelerator_of_the_profile_comes_beside_the_jobs_own_resources() -> None:
    spec = a_spec(**merged(PICKED, merged(resources(cpu=8), {"trainer": {"numProcPerNode": 8}})))
    found = resources_of(spec, a_profile(**ROCM, resourcesPerNode={"limits": {"cpu": 1}}))
    assert found is not None
    assert found.limits == {"cpu": 8, "amd.com/gpu": 8}
