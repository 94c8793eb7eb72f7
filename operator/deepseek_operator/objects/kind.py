"""A kind of object that the operator serves, as the controller sees it.

Each kind has a room of its own, like jobs/, with its spec, look, decision, manifests and status.  The kind.py of that
room puts them together as a `Kind`.  The controller watches the objects of the kind and runs the passes over them.  It
calls what the `Kind` holds, and knows nothing else about the kind.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Protocol, TypeVar

from deepseek_operator.objects.observed import Manifest, Owner, WarningEvent
from deepseek_operator.objects.plan import Plan, Refusal, Reported, Status
from deepseek_operator.settings import Settings


class Served(Protocol):
    """A parsed object of a kind."""

    @property
    def owner(self) -> Owner:
        """The object as the owner of what is made for it."""

    @property
    def status(self) -> Reported:
        """The status that was written last."""


class Reads(Protocol):
    """The questions that a look at an object may ask the cluster."""

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object, or None if there is none."""

    async def get_shared(self, api_version: str, kind: str, name: str) -> Manifest | None:
        """One cluster-scoped object that many passes read.  Passes that ask at the same time share one request."""

    async def children(self, owner: Owner, child: "Child") -> tuple[Manifest, ...]:
        """Every object whose label names the owner.  It may have been made for an earlier owner of the same name."""

    def departed(self, owner: Owner) -> tuple[Manifest, ...]:
        """Deleted children in their last state, if the kind keeps them."""

    async def quotas(self, namespace: str) -> tuple[Manifest, ...]:
        """The ResourceQuotas of a namespace."""

    async def warnings(self, manifest: Manifest) -> tuple[WarningEvent, ...]:
        """Events of type Warning about one object, newest first."""

    async def events(self, namespace: str, kind: str) -> tuple[WarningEvent, ...]:
        """Events of any type about the objects of one kind in a namespace, newest first."""

    async def listed(self, api_version: str, kind: str, namespace: str) -> tuple[Manifest, ...]:
        """The objects of one kind in a namespace, or in the cluster if it is "".

        Passes that ask at the same time share one request.  Empty if the operator has no right to list them.
        """

    async def page(self, pod: Manifest, port: int, path: str) -> bytes | None:
        """What a pod answers over HTTP, or None.  Nothing in it is trusted; its size is bounded."""


@dataclass(frozen=True, slots=True)
class Child:
    """A kind of object that the operator makes for owners, and watches."""

    api_version: str
    kind: str
    spec: tuple[str, ...]  # the fields of its spec that a decision reads
    annotations: tuple[str, ...] = ()  # those that a decision reads
    wakes: Callable[[Manifest], bool] = lambda _: True  # whether a new state of it wakes its owner
    leaves_words: bool = False  # the watch hands on a deleted one in its last state


@dataclass(frozen=True, slots=True)
class OwnerLabels:
    """The labels that name the owner on everything that is made for it."""

    name: str
    uid: str


Object = TypeVar("Object", bound=Served)
Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True)
class Kind(Generic[Object, Seen, Status]):
    """`Object` is the type of a parsed object, `Seen` that of what a look at it finds, `Status` that of its status."""

    name: str  # DeepSeekTrainingJob
    plural: str
    labels: OwnerLabels
    children: tuple[Child, ...]
    outlive: frozenset[str]  # the kinds of objects that may outlive their owner, and then have none
    keeps: Callable[[Manifest], bool]  # whether later passes read the last state of a deleted child
    read: Callable[[Manifest], Object]
    look: Callable[[Object, Reads, Settings, datetime], Awaitable[Seen]]
    # A look that takes the children as the watches saw them.
    recall: Callable[[Object, Reads, Settings, datetime, Sequence[Manifest]], Awaitable[Seen]]
    decide: Callable[[Object, Seen, Settings, datetime], Plan[Status]]
    refused: Callable[[Object, Plan[Status], Refusal, Settings, datetime], Plan[Status]]
    failing: Callable[[Object, str, datetime], Plan[Status]]  # a plan that reports an error that ends every pass


AnyKind = Kind[Any, Any, Any]
