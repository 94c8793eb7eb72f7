"""Writes safetensors files as a stream, and reads them by random access.

Format: https://github.com/huggingface/safetensors#format.  Its own library needs the whole file as one `bytes` to
write it, and copies each tensor when it reads.
"""

import json
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from deepseek_trainer.contract.errors import ConfigError

ReadAt = Callable[[int, int], bytes | bytearray | memoryview]  # (offset, length) -> bytes, fewer at the end

SIZES: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1}  # [bytes]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write.  `dtype` is safetensors' name; `content` returns the little-endian bytes when called."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Callable[[], bytes | memoryview]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


@dataclass(frozen=True, slots=True)
class View:
    """One tensor of a file that was read.  `data` is a part of the file's own bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


@dataclass(frozen=True, slots=True)
class Extent:
    """Where one tensor lies in its file: from byte `start` to before byte `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def stream(entries: Sequence[Entry]) -> Iterator[bytes | memoryview]:
    """The bytes of a file: its header, then each tensor in the order given."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        start, end = end, end + entry.size_bytes
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    yield struct.pack("<Q", len(text)) + text
    for entry in entries:
        yield entry.content()


def views(file: bytearray | memoryview, name: str) -> dict[str, View]:
    """The tensors of a file that was read whole.  Raises what `extents` raises."""
    whole = memoryview(file)
    found = extents(lambda offset, length: whole[offset : offset + length], len(whole), name)
    return {key: View(at.dtype, at.shape, whole[at.start : at.end]) for key, at in found.items()}


def extents(read_at: ReadAt, size: int, name: str) -> dict[str, Extent]:
    """Where the tensors of a file of `size` bytes lie.

    Raises ConfigError, with the file's `name`, where it is malformed or cut short.
    """
    try:
        (length,) = struct.unpack("<Q", read_at(0, 8))
        header = json.loads(bytes(read_at(8, length)))
        body = 8 + length
        return {key: _extent(body, size, **facts) for key, facts in header.items() if key != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{name} is not a safetensors file, or is cut short: {error}") from error


def _extent(body: int, size: int, dtype: str, shape: list[int], data_offsets: list[int]) -> Extent:
    start, end = data_offsets
    if not 0 <= start <= end <= size - body or end - start != math.prod(shape) * SIZES[dtype]:
        raise ValueError(f"a {dtype} tensor of shape {shape} cannot lie at bytes {start} to {end} of {size - body}")
    return Extent(dtype, tuple(shape), body + start, body + end)
