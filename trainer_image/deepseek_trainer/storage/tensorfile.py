"""Writes safetensors files as a stream, and reads them by random access.

Format: https://github.com/huggingface/safetensors#format.  Its own library needs the whole file as one `bytes` to
write it, and copies each tensor when it reads.
"""

import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeGuard

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import MAX_COUNT, shown, unambiguous

ReadAt = Callable[[int, int], bytes | bytearray | memoryview]  # (offset, length) -> bytes, fewer at the end

MAX_HEADER: Final = 100_000_000  # [bytes], as safetensors' own library
_MAX_RANK: Final = 32  # dimensions of a tensor
_OTHERS: Final = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "I8", "I16", "U16", "U32", "U64", "C64")  # of no use here
SIZES: Final = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "BF16": 2, "F16": 2, "U8": 1, "BOOL": 1}  # [bytes]


class _OtherTypeError(ValueError):
    """A tensor of a type that safetensors knows, and that nothing here computes with."""


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
    text = json_text(header).encode()
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
        if length > min(MAX_HEADER, size - 8):
            raise ValueError(f"a header of {length:,} bytes cannot be in a file of {size:,}")
        header = _object(unambiguous(bytes(read_at(8, length))))
        found = {key: _extent(8 + length, size, key, facts) for key, facts in header.items() if key != "__metadata__"}
        _refuse_overlap(found)
    except _OtherTypeError as error:
        raise ConfigError(f"{name}: {error}", hint="take a release of the model that is not quantised") from error
    except (struct.error, ValueError) as error:
        raise ConfigError(
            f"{name} is not a safetensors file, or is cut short: {error}",
            hint="copy the file again, or take a release of the model whose weights are in FP32, BF16 or FP16",
        ) from error
    return found


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError("what should be an object is none")
    return value


def _extent(body: int, size: int, key: str, facts: Any) -> Extent:
    told = _object(facts)
    dtype, shape, offsets = told.get("dtype"), told.get("shape"), told.get("data_offsets")
    if dtype in _OTHERS:
        raise _OtherTypeError(f"{shown(key)} is of type {dtype}: weights of F32, BF16, F16 can be trained")
    if not isinstance(dtype, str) or dtype not in SIZES:
        raise ValueError(f"{shown(key)} is of type {shown(dtype)}, and {', '.join(SIZES)} are read")
    if not _are_counts(shape, _MAX_RANK) or not _are_counts(offsets, 2) or len(offsets) < 2:
        raise ValueError(f"{shown(key)} has shape {shown(shape)} and offsets {shown(offsets)}")
    start, end = offsets
    if not start <= end <= size - body or end - start != math.prod(shape) * SIZES[dtype]:
        raise ValueError(f"a {dtype} tensor of shape {shape} cannot lie at bytes {start} to {end} of {size - body}")
    return Extent(dtype, tuple(shape), body + start, body + end)


def _are_counts(value: Any, most: int) -> TypeGuard[list[int]]:
    """Whether it is a list of at most so many numbers of things."""
    return isinstance(value, list) and len(value) <= most and all(type(n) is int and 0 <= n <= MAX_COUNT for n in value)


def _refuse_overlap(found: Mapping[str, Extent]) -> None:
    end = 0
    for key, extent in sorted(found.items(), key=lambda entry: (entry[1].start, entry[1].end)):
        if extent.start < end:
            raise ValueError(f"{shown(key)} begins inside of another tensor, at byte {extent.start:,}")
        end = extent.end
