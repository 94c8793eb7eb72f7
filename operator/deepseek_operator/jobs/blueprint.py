"""Everything that the objects of one attempt are built from."""

from collections.abc import Mapping
from dataclasses import dataclass

from deepseek_operator.api.isolation import EgressRule
from deepseek_operator.jobs.key_server import egress_to, key_server_of
from deepseek_operator.jobs.limits import resources_of
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.resources import Resources
from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.objects.observed import Owner
from deepseek_operator.settings import Settings


@dataclass(frozen=True, slots=True)
class Blueprint:
    """The spec of a job, joined with its profile and the settings of the installation."""

    spec: JobSpec
    owner: Owner
    profile: ProfileSpec | None
    settings: Settings
    attempt: int  # 1, 2, ...
    job_labels: Mapping[str, str]  # the labels of the training job itself
    makes_claim: bool = True  # False: training has begun on the claim
    excluded_nodes: tuple[str, ...] = ()  # Kubernetes nodes that the pods keep away from

    @property
    def child_name(self) -> str:
        return child_name(self.owner)

    @property
    def worker_job_name(self) -> str:
        return worker_job_name(self.owner, self.attempt)

    @property
    def image(self) -> str:
        image = self.spec.trainer.image or (self.profile and self.profile.image)
        assert image, "a job without an image needs its profile"
        return image

    @property
    def resources(self) -> Resources | None:
        return resources_of(self.spec, self.profile)

    @property
    def storage_class(self) -> str | None:
        return self.spec.checkpoint.volume.storage_class_name or (
            self.profile.storage_class_name if self.profile else None
        )

    @property
    def egress(self) -> tuple[EgressRule, ...]:
        given = (*self.spec.network.egress, *(self.profile.egress if self.profile else ()))
        return (*given, *egress_to(key_server_of(self.spec)))


def child_name(owner: Owner) -> str:
    """The name of the job's ServiceAccount, NetworkPolicy, Service and PersistentVolumeClaim."""
    return f"dstj-{owner.name}"


def worker_job_name(owner: Owner, attempt: int) -> str:
    return f"{owner.name}-a{attempt}"
