"""What a pass looks at and what it acts on: plain frozen values, no client."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepseek_trainer.contract.progress import Progress

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class JobKey:
    """Which training job a pass is about."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A watch, or the list that it begins with, told of a training job or of an object that was made for it."""

    key: JobKey
    version: str  # resourceVersion of what was seen
    is_job: bool = False  # the training job itself was seen
    listed: Manifest | None = None  # the training job, if the list found it
    created: Manifest | None = None  # the training job, if it was created just now, after the list
    departed: Manifest | None = None  # a pod that was deleted, as it last was


@dataclass(frozen=True, slots=True)
class Owner:
    """The training job that owns the objects made for it; `uid` tells it from a namesake made later."""

    namespace: str
    name: str
    uid: str

    @property
    def key(self) -> JobKey:
        return JobKey(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Ref:
    """One existing object; `uid` is a precondition, so that a namesake made later is never deleted."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """A Kubernetes event of type Warning about a worker Job or one of its pods."""

    kind: str  # Job or Pod
    name: str
    reason: str  # FailedMount, FailedCreate, ...
    message: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A Kubernetes event that the operator posts about a training job."""

    reason: str
    message: str
    type: str = "Normal"  # or Warning


@dataclass(frozen=True, slots=True)
class Observed:
    """The world around one training job, as read in one pass."""

    worker_jobs: tuple[Manifest, ...] = ()  # of every attempt
    pods: tuple[Manifest, ...] = ()  # of every attempt
    departed: tuple[Manifest, ...] = ()  # pods whose deletion a watch told of, as they last were
    progress: Progress | None = None  # /progress of node 0 of the current attempt; None: not answering
    warnings: tuple[WarningEvent, ...] = ()  # read only while a pod of the attempt is not ready
    isolated: bool | None = False  # the job's NetworkPolicy is there; None: not looked at, there is no worker job
    quotas: tuple[Manifest, ...] = ()  # of the namespace; read only while there is no worker job of the attempt
    profile_problem: str = ""  # the rule that the job's TrainingProfile breaks
    leftovers: tuple[str, ...] = ()  # worker jobs and pods of a namesake that was deleted, `Pod demo-a1-0-x7x2k`


def ref(manifest: Mapping[str, Any]) -> Ref:
    """Reference to an object that was read from the cluster."""
    meta = manifest["metadata"]
    return Ref(manifest["apiVersion"], manifest["kind"], meta.get("namespace", ""), meta["name"], meta["uid"])
