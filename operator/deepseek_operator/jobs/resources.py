"""The resources of a pod: quantities, and the devices that the trainer can use."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field

from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.rules import Model, Rule

_QUANTITY: Final = r"^[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi|T|Ti|P|Pi)?$"


def _is_quantity(value: Any) -> int | str:
    if isinstance(value, int | str) and re.fullmatch(_QUANTITY[1:-1], str(value)):
        return value
    raise ValueError(f"{shown(value)} is not a quantity: use 4, 500m, 64Gi or, in quotes, '1.5'")


Quantity = Annotated[
    int | str,
    BeforeValidator(_is_quantity),
    Field(json_schema_extra={"x-kubernetes-int-or-string": True, "pattern": _QUANTITY, "minimum": 0, "maxLength": 32}),
]
QualifiedName = Annotated[
    str, Field(pattern=r"^([a-z0-9.-]+/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=253)
]
LabelValue = Annotated[str, Field(pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$", max_length=63)]
ResourceList = Annotated[dict[QualifiedName, Quantity], Field(max_length=16)]

GPU: Final = "nvidia.com/gpu"
ROCM: Final = "amd.com/gpu"
_NVIDIA: Final = "nvidia[.]com/(gpu|gpu[.]shared|mig-[a-z0-9.]+)"
_FABRIC: Final = "rdma/[A-Za-z0-9_.-]+|vpc[.]amazonaws[.]com/efa"
_KNOWN: Final = f"cpu|memory|ephemeral-storage|hugepages-[0-9]+[KMG]i|{_NVIDIA}|{_FABRIC}"
_DRIVEN: Final = (
    "cpu, memory, ephemeral-storage, hugepages-*, nvidia.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-*, rdma/* and "
    "vpc.amazonaws.com/efa"
)


class Resources(Model):
    """Compute resources of one node (pod), as in core/v1."""

    requests: Annotated[ResourceList | None, Field(description="Requests; default: the limits.")] = None
    limits: Annotated[ResourceList | None, Field(description="Limits, nvidia.com/gpu among them.")] = None

    rules: ClassVar = (
        Rule(
            " && ".join(
                f"(!has(self.{field}) || self.{field}.all(r, r.matches('^({_KNOWN})$')))"
                for field in ("limits", "requests")
            ),
            f"limits and requests may name {_DRIVEN}; amd.com/gpu comes from a TrainingProfile with accelerator and an "
            "image with torch for ROCm; the trainer drives no other device, such as those of huawei.com, habana.ai, "
            "google.com or gpu.intel.com: leave the resource out",
            lambda self: all(re.fullmatch(_KNOWN, name) for name in (*(self.limits or {}), *(self.requests or {}))),
        ),
        Rule(
            "!has(self.limits) || self.limits.filter(r, r.startsWith('nvidia.com/')).size() <= 1",
            "limits may name one kind of nvidia.com/ device: one process drives one, and all are alike",
            lambda self: sum(_is_accelerator(name) for name in self.limits or {}) <= 1,
        ),
        Rule(
            "!has(self.requests) || self.requests.all(r, !r.contains('/')"
            " || (has(self.limits) && r in self.limits && string(self.limits[r]) == string(self.requests[r])))",
            "a device in requests must be in limits with the same number: no device is shared; requests may leave it "
            "out",
            lambda self: all(
                str((self.limits or {}).get(name)) == str(number)
                for name, number in (self.requests or {}).items()
                if "/" in name
            ),
        ),
    )


class Accelerator(Model):
    """The devices of a pod, one for each process.  The operator adds them to the limits of its containers."""

    resource_name: Annotated[
        str,
        Field(
            max_length=253,
            description="nvidia.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-*, or amd.com/gpu with an image that "
            "has torch for ROCm.",
        ),
    ] = GPU
    count: Annotated[int, Field(ge=1, le=64, description="Devices of a pod; equals numProcPerNode of its jobs.")]

    rules: ClassVar = (
        Rule(
            f"self.resourceName.matches('^({_NVIDIA}|amd[.]com/gpu)$')",
            "resourceName must be one that torch drives: nvidia.com/gpu, nvidia.com/gpu.shared, nvidia.com/mig-* or "
            "amd.com/gpu",
            lambda self: _is_accelerator(self.resource_name),
        ),
    )


@dataclass(frozen=True, slots=True)
class Devices:
    """The accelerators of one pod."""

    name: str
    count: int | str  # a quantity, as it was given


def accelerators_of(resources: Resources | None) -> Devices | None:
    """The accelerators that `resources` ask for, if they do."""
    limits = (resources and resources.limits) or {}
    return next((Devices(name, count) for name, count in limits.items() if _is_accelerator(name)), None)


def has_fabric(resources: Resources | None) -> bool:
    """Whether `resources` ask for RDMA."""
    return any(re.fullmatch(_FABRIC, name) for name in (resources and resources.limits) or {})


def _is_accelerator(name: str) -> bool:
    return name == ROCM or re.fullmatch(_NVIDIA, name) is not None
