"""What one pass does to the cluster, as a value.  A kind decides it, and the controller carries it out."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, Protocol, TypeVar

from deepseek_operator.objects.observed import Manifest, Notice, Ref


class Reported(Protocol):
    """A status that can be written."""

    def manifest(self) -> Manifest:
        """The status in the form that the API server takes."""


Status = TypeVar("Status", bound=Reported)


class Cause(Enum):
    """Why an object is not as a plan wants it."""

    REFUSED = auto()  # the API server refused to make it
    CHANGE_REFUSED = auto()  # it is there, and the API server refused to change it
    TAKEN = auto()  # somebody else has an object of that name
    LEAVING = auto()  # it is being deleted, or belongs to an earlier owner, which is being deleted


@dataclass(frozen=True, slots=True)
class Refusal:
    """What keeps an object from being made or changed, with the object in the message."""

    cause: Cause
    message: str


@dataclass(frozen=True, slots=True)
class Plan(Generic[Status]):
    """A pass applies objects, deletes objects, then writes the status and posts the notices."""

    status: Status
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Ref, ...] = ()
    look_again: float | None = None  # seconds until the next pass; None: the next event starts it
    notices: tuple[Notice, ...] = ()
    # False: the next pass sees what this one makes, and one write of the status reports both.  The status of this plan
    # is then written only if the API server refuses an object.
    report: bool = True
    # True: it reports only what goes on, for which it is enough to know what the watches saw.
    only_watches: bool = False
