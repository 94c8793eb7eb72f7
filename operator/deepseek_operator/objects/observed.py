"""What a pass looks at and what it acts on: plain frozen values, no client."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class OwnerKey:
    """Which object a pass is about; it owns what is made for it."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a watch, or the list that it begins with, reported: an object that owns others, or one that was made for it.

    At most one of the three manifests is there.
    """

    key: OwnerKey
    version: str  # resourceVersion of what was seen
    is_owner: bool = False  # the owner itself was seen
    listed: Manifest | None = None  # the owner, if the list found it
    created: Manifest | None = None  # the owner, if it was created just now, after the list
    departed: Manifest | None = None  # a child that was deleted, as it last was


@dataclass(frozen=True, slots=True)
class Owner:
    """An object that others are made for; `uid` tells it from a namesake made later."""

    namespace: str
    name: str
    uid: str

    @property
    def key(self) -> OwnerKey:
        return OwnerKey(self.namespace, self.name)


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
    """A Kubernetes event of type Warning about an object."""

    kind: str  # of the object: Job, Pod, ...
    name: str
    reason: str  # FailedMount, FailedCreate, ...
    message: str


@dataclass(frozen=True, slots=True)
class Notice:
    """A Kubernetes event that the operator posts about an object of its kind."""

    reason: str
    message: str
    type: str = "Normal"  # or Warning


def ref(manifest: Mapping[str, Any]) -> Ref:
    """Reference to an object that was read from the cluster."""
    meta = manifest["metadata"]
    return Ref(manifest["apiVersion"], manifest["kind"], meta.get("namespace", ""), meta["name"], meta["uid"])
