"""What one pass does to the cluster, as a value: a kind decides it, the controller carries it out."""

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from deepseek_operator.objects.observed import Manifest, Notice, Ref


class Reported(Protocol):
    """A status, as models of the API write it."""

    def manifest(self) -> Manifest:
        """The status as it is written to the API server."""


Status = TypeVar("Status", bound=Reported)


@dataclass(frozen=True, slots=True)
class Plan(Generic[Status]):
    """Objects to apply and delete, then the status to show, and when to look again [s; None: on the next event].

    Without `report` the status is shown only if the API server refuses an object: the next look sees what this plan
    makes, and one write tells of both.
    """

    status: Status
    apply: tuple[Manifest, ...] = ()
    delete: tuple[Ref, ...] = ()
    look_again: float | None = None
    notices: tuple[Notice, ...] = ()
    report: bool = True
