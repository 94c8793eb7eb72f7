"""The values that a pass reads and acts on.  They are plain and frozen, and hold no client."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True, order=True)
class OwnerKey:
    """The object that a pass is about.  It owns what the operator makes for it."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Sighting:
    """An object that a watch reported, or the list with which the watch began.

    The object is an owner, or a child: something that was made for an owner.
    """

    key: OwnerKey
    version: str  # resourceVersion of the object
    is_owner: bool = False  # the object is the owner itself
    owner: Manifest | None = None  # None: it was deleted, or the object is a child
    is_new: bool = False  # the owner was created after the list
    departed: Manifest | None = None  # a deleted child, in its last state


@dataclass(frozen=True, slots=True)
class Owner:
    """An object that others are made for.  Its `uid` distinguishes it from an object of the same name made later."""

    namespace: str
    name: str
    uid: str

    @property
    def key(self) -> OwnerKey:
        return OwnerKey(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Ref:
    """One existing object.  A deletion requires its `uid`, so that no later object of the same name is deleted."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str


@dataclass(frozen=True, slots=True)
class WarningEvent:
    """A Kubernetes event about an object that may lack something.  Most are of type Warning."""

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


def holders(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """The finalizers of others that keep an object that was deleted.

    Kubernetes itself removes its own two, once it has deleted or released what the object owns.
    """
    meta = manifest["metadata"]
    finalizers = meta.get("finalizers", ()) if "deletionTimestamp" in meta else ()
    return tuple(name for name in finalizers if name not in {"foregroundDeletion", "orphan"})


def ref(manifest: Mapping[str, Any]) -> Ref:
    """The reference to an object that was read from the cluster."""
    meta = manifest["metadata"]
    return Ref(manifest["apiVersion"], manifest["kind"], meta.get("namespace", ""), meta["name"], meta["uid"])
