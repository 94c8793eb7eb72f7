"""Whether a job keeps to its profile: its accelerators, its pods' metadata, and the most that it may ask for.

Each function gives messages like that of a broken rule.  They name the value, the rule and the way out.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from deepseek_operator.jobs.profile import Limits, ProfileSpec
from deepseek_operator.jobs.resources import Resources, accelerators_of
from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.objects.quota import amount
from deepseek_trainer.contract.foreign import shown

_UNLIMITED: Final = ("cpu", "memory", "ephemeral-storage")  # without a limit, what the machine has
_WAY_OUT: Final = ": ask for less, or pick another profile"


def resources_of(spec: JobSpec, profile: ProfileSpec | None) -> Resources | None:
    """The resources of each pod: those of the job, else those of the profile, with the profile's accelerators."""
    own = spec.trainer.resources_per_node or (profile.resources_per_node if profile else None)
    devices = profile.accelerator if profile else None
    if devices is None or accelerators_of(own):
        return own
    own = own or Resources()
    return own.model_copy(update={"limits": {**(own.limits or {}), devices.resource_name: devices.count}})


def profile_mismatch(spec: JobSpec, profile: ProfileSpec) -> str | None:
    """Why `spec` cannot run with `profile`, or None if it can."""
    name = f"TrainingProfile {shown(spec.trainer.profile)}"
    found = [*_accelerators(spec, profile, name), *_metadata(spec, profile, name)]
    if profile.limits:
        found += [f"{problem}, the most of {name}{_WAY_OUT}" for problem in _excess(spec, profile.limits)]
        found += _names(spec, profile.limits, name)
    return "; ".join(found) or None


def _accelerators(spec: JobSpec, profile: ProfileSpec, name: str) -> Iterator[str]:
    trainer, own = spec.trainer, accelerators_of(spec.trainer.resources_per_node)
    if own and profile.accelerator and own.name != profile.accelerator.resource_name:
        yield (
            f"spec.trainer.resourcesPerNode: {own.name} is not the accelerator of {name}, "
            f"{profile.accelerator.resource_name}: leave it out, or pick another profile"
        )
        return
    devices = accelerators_of(resources_of(spec, profile))
    if devices and str(devices.count) != str(trainer.num_proc_per_node):
        yield (
            f"spec.trainer.numProcPerNode: must equal {devices.name} of {name}, "
            f"which is {shown(devices.count)}, not {trainer.num_proc_per_node}: one process drives one device; "
            "make the job anew with that number, or with another profile"
        )


def _metadata(spec: JobSpec, profile: ProfileSpec, name: str) -> Iterator[str]:
    given, prefixes = spec.trainer.pod_metadata, profile.pod_metadata_prefixes
    if given and (refused := given.keys_without(prefixes)):
        allowed = f"only keys that begin with {', '.join(prefixes)}" if prefixes else "no labels or annotations"
        yield (
            f"spec.trainer.podMetadata: {name} lets a job set {allowed}, not {', '.join(map(shown, refused))}: leave "
            "them out, or ask the platform team for podMetadataPrefixes"
        )


def _excess(spec: JobSpec, limits: Limits) -> Iterator[str]:
    nodes, volume = spec.trainer.num_nodes, spec.checkpoint.volume
    if limits.max_nodes is not None and nodes > limits.max_nodes:
        yield f"spec.trainer.numNodes: {nodes} is more than {limits.max_nodes}"
    most = limits.max_volume_size
    if volume.claim_name is None and most is not None and amount(volume.size) > amount(most):
        yield f"spec.checkpoint.volume.size: {volume.size} is more than {most}"
    if own := spec.trainer.resources_per_node:
        yield from _excess_of_resources(own, limits)


def _excess_of_resources(own: Resources, limits: Limits) -> Iterator[str]:
    for resource, most in (limits.max_resources_per_node or {}).items():
        asked = [each[resource] for each in (own.limits, own.requests) if each and resource in each]
        path = f"spec.trainer.resourcesPerNode.limits: {resource}"
        if resource in _UNLIMITED and resource not in (own.limits or {}):
            yield f"{path} is not limited, so it is more than {most}"
        elif any(amount(each) > amount(most) for each in asked):
            yield f"{path}: {max(asked, key=amount)} is more than {most}"


def _names(spec: JobSpec, limits: Limits, name: str) -> Iterator[str]:
    asked = (
        ("scheduling.priorityClassName", spec.scheduling.priority_class_name, limits.priority_class_names),
        ("checkpoint.volume.storageClassName", spec.checkpoint.volume.storage_class_name, limits.storage_class_names),
    )
    for path, value, allowed in asked:
        if value is not None and allowed is not None and value not in allowed:
            yield f"spec.{path}: {shown(value)} is none that {name} allows: {_listed(allowed)}"


def _listed(allowed: Iterable[str]) -> str:
    return f"use one of {', '.join(allowed)}, or none" if allowed else "name none"
