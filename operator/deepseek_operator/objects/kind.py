"""A kind of object that the operator serves: all that the controller knows of it.

Each kind has a room beside jobs/ with its spec, look, decision, manifests and status; its kind.py puts them together.
The controller watches objects of the kind, runs the passes over them, and calls what stands here.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, Protocol, TypeVar

from deepseek_operator.objects.observed import Manifest, Owner, WarningEvent
from deepseek_operator.objects.plan import Plan, Reported, Status
from deepseek_operator.settings import Settings


class Served(Protocol):
    """An object of a kind, parsed."""

    @property
    def owner(self) -> Owner:
        """The object as the owner of what is made for it."""

    @property
    def status(self) -> Reported:
        """What was reported about it last."""


class Reads(Protocol):
    """What a look at an object may ask the cluster."""

    async def get(self, api_version: str, kind: str, namespace: str, name: str) -> Manifest | None:
        """One object, or None."""

    async def get_shared(self, api_version: str, kind: str, name: str) -> Manifest | None:
        """One cluster-scoped object that many passes read: those that ask at the same time share an answer."""

    async def children(self, owner: Owner, child: "Child") -> tuple[Manifest, ...]:
        """What was made for the owner or for a namesake of it, by its label."""

    def departed(self, owner: Owner) -> tuple[Manifest, ...]:
        """Children that were deleted, as they last were, if the kind keeps such."""

    async def quotas(self, namespace: str) -> tuple[Manifest, ...]:
        """The ResourceQuotas of a namespace."""

    async def warnings(self, manifest: Manifest) -> tuple[WarningEvent, ...]:
        """Events of type Warning about one object, the newest first."""

    async def page(self, pod: Manifest, port: int, path: str) -> bytes | None:
        """What a pod answers over HTTP; None if it does not.  It is foreign, and no longer than MAX_PAGE."""


@dataclass(frozen=True, slots=True)
class Child:
    """A kind of object that is made for those of the operator's kind, and watched for them."""

    api_version: str
    kind: str
    spec: tuple[str, ...]  # fields of its spec that a decision asks for
    selector: str = ""  # fieldSelector of its watch
    leaves_words: bool = False  # a deleted one is handed on as it last was


@dataclass(frozen=True, slots=True)
class OwnerLabels:
    """Labels of everything that is made for an object of the kind: its name and its uid."""

    name: str
    uid: str


Object = TypeVar("Object", bound=Served)
Seen = TypeVar("Seen")


@dataclass(frozen=True, slots=True)
class Kind(Generic[Object, Seen, Status]):
    """`Object`: one of the kind, parsed.  `Seen`: what a look at it finds.  `Status`: what is reported of it."""

    name: str  # DeepSeekTrainingJob
    plural: str
    labels: OwnerLabels
    children: tuple[Child, ...]
    keeps: Callable[[Manifest], bool]  # whether a deleted child may have left words that a later pass reads
    read: Callable[[Manifest], Object]
    look: Callable[[Object, Reads, Settings, datetime], Awaitable[Seen]]
    recall: Callable[[Object, Reads, Sequence[Manifest]], Awaitable[Seen]]  # as look, over children that were listed
    decide: Callable[[Object, Seen, Settings, datetime], Plan[Status]]
    refused: Callable[[Object, Plan[Status], str, Settings, datetime], Plan[Status]]
