"""The worker Job of one attempt.  It has one pod per node, and all pods are hardened alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from deepseek_operator.jobs import labels
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.key_server import key_volume
from deepseek_operator.jobs.placement import placement
from deepseek_operator.jobs.pod_metadata import merged
from deepseek_operator.jobs.profile import ProfileSpec, UserFrom
from deepseek_operator.jobs.resources import accelerators_of, has_fabric
from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.objects.observed import Manifest
from deepseek_trainer.contract import names
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.names import NOT_RETRYABLE

SHARED_MEMORY: Final = "/dev/shm"  # noqa: S108  for NCCL and gloo, which need more than the 64 MB of a container
PREPARE: Final = "prepare"  # the init container
TRAIN: Final = "trainer"
USER: Final = 10001  # the user of the trainer image, who owns what it writes to the volumes


@dataclass(frozen=True, slots=True)
class _Volume:
    """A volume of the pod, and the path at which its containers mount it."""

    name: str
    path: str
    source: Manifest
    read_only: bool = False
    only: str = ""  # the only container that mounts it; empty: all do

    @property
    def mount(self) -> Manifest:
        mount: Manifest = {"name": self.name, "mountPath": self.path}
        return mount | {"readOnly": True} if self.read_only else mount


def worker_job(blueprint: Blueprint, meta: Manifest) -> Manifest:
    """The Indexed Job of one attempt.  It never retries a failure by itself: the next attempt is a new Job.

    It replaces an evicted pod, which helps a job of one node.  With several nodes, the ranks of the others stop with
    those of the evicted pod, and the exit code 143 of their pods fails the Job.  `spec.suspend` is left out, because it
    belongs to Kueue if the job has a queue label.
    """
    nodes = blueprint.spec.trainer.num_nodes
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": meta,
        "spec": {
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",  # no index has two pods, even for a moment
            "podFailurePolicy": {"rules": _failure_rules()},
            "template": {"metadata": _pod_metadata(blueprint), "spec": _pod(blueprint)},
        },
    }


def _pod_metadata(blueprint: Blueprint) -> Manifest:
    profile = blueprint.profile
    given = merged(profile.pod_metadata if profile else None, blueprint.spec.trainer.pod_metadata)
    own = labels.of_job(blueprint.owner) | {labels.ATTEMPT: str(blueprint.attempt)}
    return {
        "labels": given["labels"] | own,
        "annotations": given["annotations"] | {labels.CONFIG: _config(blueprint)},
    }


def _config(blueprint: Blueprint) -> str:
    """The config.json of the trainer.  Its keys are sorted, so that equal jobs give equal bytes."""
    owner = blueprint.owner
    config = blueprint.spec.training_config(owner.namespace, owner.name)
    content = config.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json_text(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _failure_rules() -> list[Manifest]:
    """Only the exit codes of the operator's own containers mean something."""
    codes = {"operator": "In", "values": sorted(int(code) for code in NOT_RETRYABLE)}
    fails = ({"action": "FailJob", "onExitCodes": {"containerName": name, **codes}} for name in (PREPARE, TRAIN))
    return [*fails, {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]


def _pod(blueprint: Blueprint) -> Manifest:
    volumes, profile = _volumes(blueprint), blueprint.profile
    pod: Manifest = {
        "restartPolicy": "Never",
        "subdomain": blueprint.child_name,
        "serviceAccountName": blueprint.child_name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": blueprint.spec.checkpoint.grace_period_seconds + names.LEAVE_S,
        "securityContext": _pod_security(profile),
        "initContainers": [_prepare(blueprint, volumes)],
        "containers": [_trainer(blueprint, volumes)],
        "volumes": [{"name": volume.name, **volume.source} for volume in volumes],
    }
    if profile and profile.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in profile.image_pull_secrets]
    return pod | placement(blueprint)


def _prepare(blueprint: Blueprint, volumes: Sequence[_Volume]) -> Manifest:
    shared = _container(blueprint, PREPARE, _environment(blueprint), volumes)
    return shared | {"command": ["python", "-m", "deepseek_trainer.prepare"]}


def _trainer(blueprint: Blueprint, volumes: Sequence[_Volume]) -> Manifest:
    rendezvous = f"{blueprint.worker_job_name}-0.{blueprint.child_name}:{names.RENDEZVOUS_PORT}"
    env = _environment(blueprint) | {names.ENV_RENDEZVOUS: rendezvous}
    shared = _container(blueprint, TRAIN, env, volumes)
    port = {"name": "metrics", "containerPort": names.METRICS_PORT, "protocol": "TCP"}
    return shared | {"command": ["python", "-m", "deepseek_trainer.launch"], "ports": [port]}


def _container(blueprint: Blueprint, name: str, env: Mapping[str, str], volumes: Sequence[_Volume]) -> Manifest:
    container: Manifest = {
        "name": name,
        "image": blueprint.image,
        "env": [{"name": variable, "value": value} for variable, value in env.items()],
        "volumeMounts": [volume.mount for volume in volumes if volume.only in ("", name)],
        "securityContext": _CONTAINER_SECURITY,
    }
    if blueprint.resources:
        container["resources"] = blueprint.resources.model_dump(mode="json", by_alias=True, exclude_none=True)
    return container


def _pod_security(profile: ProfileSpec | None) -> Manifest:
    user = {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER}
    is_given = profile is not None and profile.security.user_from is UserFrom.NAMESPACE
    return _POD_SECURITY if is_given else _POD_SECURITY | user


_POD_SECURITY: Final = {
    "runAsNonRoot": True,
    "fsGroupChangePolicy": "OnRootMismatch",  # a recursive chown of a full checkpoint volume takes hours
    "seccompProfile": {"type": "RuntimeDefault"},
}
_CONTAINER_SECURITY: Final = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def _environment(blueprint: Blueprint) -> dict[str, str]:
    """The environment of a container, to which the Job controller adds the index of the node."""
    profile, devices = blueprint.profile, accelerators_of(blueprint.resources)
    values = {variable.name: variable.value for variable in (profile.env if profile else ())}
    values[names.ENV_RUN_ID] = f"{blueprint.owner.uid}-{blueprint.attempt}"
    if devices:
        values[names.ENV_ACCELERATORS] = f"{devices.count} {devices.name}"
    if has_fabric(blueprint.resources):
        values[names.ENV_FABRIC] = "1"
    if threads := _threads(blueprint):
        values["OMP_NUM_THREADS"] = str(threads)
    return values


def _threads(blueprint: Blueprint) -> int | None:
    """Whole CPUs of the limit for each process, at least one, or None without a limit."""
    limits = (blueprint.resources and blueprint.resources.limits) or {}
    cpu = str(limits.get("cpu", ""))
    if not cpu.removesuffix("m").replace(".", "", 1).isdecimal():
        return None
    cores = Decimal(cpu[:-1]) / 1000 if cpu.endswith("m") else Decimal(cpu)
    return max(1, int(cores) // blueprint.spec.trainer.num_proc_per_node)


def _volumes(blueprint: Blueprint) -> list[_Volume]:
    spec, made = blueprint.spec, blueprint.child_name
    config = {"path": names.CONFIG_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{labels.CONFIG}']"}}
    volumes = [
        _Volume("config", names.CONFIG_MOUNT, {"downwardAPI": {"items": [config]}}, read_only=True),
        _Volume("work", names.WORK_MOUNT, _claim(spec.checkpoint.volume.claim_name or made)),
        _Volume("tmp", names.SCRATCH_MOUNT, {"emptyDir": {}}),
        _Volume("shm", SHARED_MEMORY, {"emptyDir": {"medium": "Memory"}}, only=TRAIN),
    ]
    if encryption := spec.checkpoint.encryption:
        volumes.append(_Volume("keys", names.KEY_MOUNT, key_volume(encryption.key_ref), read_only=True))
    models = {place.claim_name for place in spec.model.places}
    for i, claim in enumerate(_claims(spec)):
        path = f"{names.CLAIMS_MOUNT}/{claim}"
        only = "" if claim in models else PREPARE
        volumes.append(_Volume(f"claim-{i}", path, _claim(claim), read_only=True, only=only))
    return volumes


def _claim(name: str) -> Manifest:
    return {"persistentVolumeClaim": {"claimName": name}}


def _claims(spec: JobSpec) -> list[str]:
    """The claims that hold the data, the base model and the adapter of the job."""
    places = (*spec.data.places, *spec.model.places)
    return sorted({place.claim_name for place in places if place is not None})
