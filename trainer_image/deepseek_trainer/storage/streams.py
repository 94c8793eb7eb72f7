"""What callers and files hand each other: buffers of bytes, sinks that take them, readers that return them."""

from collections.abc import Callable, Iterator
from typing import Protocol, Self

Bytes = bytes | bytearray | memoryview
Advance = Callable[[int], object]  # of a progress bar: called with the number of bytes just read


def unwatched(_size: int) -> None:
    """Shows nobody how far a reading is."""


class Sink(Protocol):
    """What a writer writes to, such as an unbuffered file.  `write` returns how many bytes it took."""

    def write(self, data: memoryview, /) -> int: ...


class Reader(Protocol):
    """An open file.  Where the vault seals, every byte that it returns is authentic."""

    size: int  # of the content [bytes]

    @property
    def salt(self) -> str | None: ...  # of a sealed file
    def read_at(self, offset: int, length: int) -> bytearray: ...
    def read_onto(self, offset: int, target: memoryview) -> None: ...
    # The digest of what was read, in the clear by the function of the digest `like`.
    def read_into(self, target: memoryview, like: str | None = None, /) -> str: ...
    def pieces(self) -> Iterator[memoryview]: ...
    def verify(self, advance: Advance = unwatched, like: str | None = None, /) -> str: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def as_bytes(data: Bytes) -> memoryview:
    """A flat view of any contiguous buffer, such as an array's."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # cast refuses a shape with a zero


def put(sink: Sink, data: memoryview) -> None:
    """Write all of `data`, in several calls where the sink takes less in one."""
    while data:
        data = data[sink.write(data) :]
