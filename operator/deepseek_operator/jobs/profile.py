"""What a TrainingProfile may say: everything about pods that varies by platform and not by job."""

import re
from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field
from pydantic.alias_generators import to_camel

from deepseek_operator.api.isolation import EgressRule
from deepseek_operator.jobs.image import Image
from deepseek_operator.jobs.pod_metadata import MetadataPrefix, PodMetadata
from deepseek_operator.jobs.resources import (
    Accelerator,
    LabelValue,
    QualifiedName,
    Quantity,
    ResourceList,
    Resources,
    accelerators_of,
)
from deepseek_operator.jobs.scheduling import Affinity, SpreadConstraint, Toleration
from deepseek_trainer.contract.rules import Model, Rule
from deepseek_trainer.contract.volume import DnsName

VARIABLE: Final = "(NCCL|GLOO|TORCH|PYTORCH|UCX|FI)_[A-Z0-9_]+"
# The launcher sets the first.  The others unpickle files, run a command and send mail.
_DENIED: Final = (
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE",
    "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD",
    "UCX_GDB_COMMAND",
    "UCX_ERROR_MAIL_TO",
)
_PLACES: Final = "[A-Z0-9_]+_(DIR|PATH|HOME)"  # libraries and compiled code are loaded from there


class ImagePullSecret(Model):
    """A Secret that opens a registry, as in core/v1."""

    name: Annotated[DnsName, Field(description="Secret in the namespace of each job.")]


class EnvVar(Model):
    """A setting of NCCL, gloo, torch, UCX or libfabric."""

    name: Annotated[str, Field(max_length=128, description="Begins with NCCL_, GLOO_, TORCH_, PYTORCH_, UCX_ or FI_.")]
    # No path, so that it names no library, no file of settings and no file to write.
    value: Annotated[str, Field(max_length=256, pattern="^[ -.0-~]*$", description="Printable ASCII without '/'.")]

    rules: ClassVar = (
        Rule(
            f"self.name.matches('^{VARIABLE}$')",
            "name must begin with NCCL_, GLOO_, TORCH_, PYTORCH_, UCX_ or FI_ and go on in capitals, digits and '_': "
            "other variables belong to the image",
            lambda self: re.fullmatch(VARIABLE, self.name) is not None,
        ),
        Rule(
            f"!(self.name in {list(_DENIED)}) && !self.name.matches('^{_PLACES}$')",
            f"name must be none of {', '.join(_DENIED)}, and must not end in _DIR, _PATH or _HOME: the trainer sets "
            "it, or it would run what somebody else wrote; leave it out",
            lambda self: self.name not in _DENIED and re.fullmatch(_PLACES, self.name) is None,
        ),
    )


class UserFrom(StrEnum):
    FIXED = "Fixed"
    NAMESPACE = "Namespace"


class Security(Model):
    """As whom containers run.  Never as root, never with a capability."""

    user_from: Annotated[
        UserFrom,
        Field(
            description="Fixed: user and group 10001. Namespace: whom an admission controller of the namespace gives, "
            "such as the SecurityContextConstraints of OpenShift."
        ),
    ] = UserFrom.FIXED


class Limits(Model):
    """The most that a job of the profile may ask for.  What is not given is not limited."""

    max_nodes: Annotated[int | None, Field(ge=1, le=1000, description="Largest trainer.numNodes.")] = None
    max_resources_per_node: Annotated[
        ResourceList | None,
        Field(description="Largest trainer.resourcesPerNode; a job that gives its own must limit cpu and memory then."),
    ] = None
    priority_class_names: Annotated[
        tuple[DnsName, ...] | None,
        Field(max_length=32, description="Values of scheduling.priorityClassName. A job may also name none."),
    ] = None
    storage_class_names: Annotated[
        tuple[DnsName, ...] | None,
        Field(
            max_length=32,
            description="Values of checkpoint.volume.storageClassName. A job may also name none.",
        ),
    ] = None
    max_volume_size: Annotated[Quantity | None, Field(description="Largest checkpoint.volume.size.")] = None


def _distinct(field: str, of: str, *keys: str) -> Rule:
    """The items of `field` differ in their `keys`."""
    attribute, names = to_camel(field), [to_camel(key) for key in keys]
    same = " && ".join(f"a.{name} == b.{name}" for name in names)

    def holds(self: "ProfileSpec") -> bool:
        items = getattr(self, field) or ()
        return len({tuple(getattr(item, key) for key in keys) for item in items}) == len(items)

    return Rule(
        f"!has(self.{attribute}) || self.{attribute}.all(a, self.{attribute}.exists_one(b, {same}))",
        f"each of {attribute} needs {of} of its own: drop the others",
        holds,
    )


class ProfileSpec(Model):
    """What the platform team decides and a job picks by name."""

    image: Annotated[Image, Field(description="Trainer image by digest.")]
    image_pull_secrets: Annotated[
        tuple[ImagePullSecret, ...], Field(max_length=8, description="Secrets that open the registry of the image.")
    ] = ()
    resources_per_node: Annotated[
        Resources | None, Field(description="Resources of a pod where the job gives none.")
    ] = None
    accelerator: Annotated[
        Accelerator | None, Field(description="Devices of a pod, added to its resources, the job's own too.")
    ] = None
    runtime_class_name: Annotated[
        DnsName | None, Field(description="RuntimeClass of the pods, such as nvidia on k3s and RKE2.")
    ] = None
    env: Annotated[
        tuple[EnvVar, ...], Field(max_length=64, description="Settings of the libraries that train and communicate.")
    ] = ()
    pod_metadata: Annotated[PodMetadata | None, Field(description="Labels and annotations of the pods.")] = None
    pod_metadata_prefixes: Annotated[
        tuple[MetadataPrefix, ...],
        Field(
            max_length=16,
            description="Beginnings of the keys that a job may set in trainer.podMetadata, such as sidecar.istio.io/.",
        ),
    ] = ()
    security: Annotated[Security, Field(description="As whom containers run.")] = Security()
    scheduler_name: Annotated[DnsName | None, Field(description="Scheduler of the pods; default: the cluster's.")] = (
        None
    )
    node_selector: Annotated[
        dict[QualifiedName, LabelValue] | None, Field(max_length=32, description="Nodes that may be used.")
    ] = None
    affinity: Annotated[Affinity | None, Field(description="Machines that may be used or are preferred.")] = None
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32, description="Taints that are tolerated.")] = ()
    topology_spread: Annotated[
        tuple[SpreadConstraint, ...] | None,
        Field(max_length=8, description="How the pods of an attempt spread; default: over machines if possible."),
    ] = None
    storage_class_name: Annotated[
        DnsName | None, Field(description="Class of the work volume where the job gives none.")
    ] = None
    egress: Annotated[
        tuple[EgressRule, ...], Field(max_length=32, description="Destinations every job of the profile may reach.")
    ] = ()
    limits: Annotated[Limits | None, Field(description="The most that a job may ask for.")] = None

    rules: ClassVar = (
        Rule(
            "!has(self.accelerator) || !has(self.resourcesPerNode) || !has(self.resourcesPerNode.limits)"
            " || !self.resourcesPerNode.limits.exists(r, r.startsWith('nvidia.com/'))",
            "accelerator adds its devices to resourcesPerNode.limits: leave them out there",
            lambda self: not (self.accelerator and accelerators_of(self.resources_per_node)),
        ),
        _distinct("image_pull_secrets", "a name", "name"),
        _distinct("env", "a name", "name"),
        _distinct("topology_spread", "a topologyKey and whenUnsatisfiable", "topology_key", "when_unsatisfiable"),
    )
