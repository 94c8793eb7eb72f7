"""How files become records: what the task says about that, and what every record can be asked."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

Value = dict[str, Any]
Load = Callable[[], Value | None]  # the fields of a record; None: a blank line.  Raises DataError for a bad one
Columns = Callable[[list[str], str], list[str]]  # names of a table's columns, its place -> those that records need
Reader = Callable[[Path, str, Columns], Iterator[tuple[int, Load]]]


class Record(Protocol):
    """One entry of the data, as the user wrote it."""

    @property
    def place(self) -> str:
        """File and line, for messages."""

    @property
    def label(self) -> str | None:
        """Its class, with data.balanceBy."""

    @property
    def unused(self) -> tuple[str, ...]:
        """The names of its fields that were not used."""

    def key(self) -> int:
        """64 bits of a hash of the content: equal records have equal keys, wherever they stand."""

    def size_bytes(self) -> int:
        """The size of its content."""


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Reading(Generic[R]):
    """Which files hold records of a task, and what a record is made of."""

    readers: Mapping[str, Reader]  # by the suffix of a file's name
    columns: Columns
    record: Callable[[Value, str, int], R | None]  # fields, file, line; None for an empty one; raises DataError
    way_out: Callable[[Sequence[Path]], str]  # where none of the files that there are can be read
    advertised: tuple[str, ...] = ()  # suffixes that messages speak of, where that is not all of them
