"""Read a GGUF file: metadata and tensors, memory-mapped.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.  `gguf.GGUFReader` takes 4.5 s for
the 98 MB of SmolLM2-135M, because it makes numpy views of each of its 98,000 strings; this takes
0.2 s.  `gguf` still does the de-quantisation.
"""

import math
import mmap
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from deepseek_trainer.base_model.guard import place
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_line, shown
from deepseek_trainer.storage.opening import opened

T = TypeVar("T")

MAGIC: Final = b"GGUF"
_ALIGNMENT = 32  # [bytes], unless general.alignment says otherwise
_MAX_ALIGNMENT: Final = 1 << 16  # [bytes]
_MAX_RANK: Final = 4  # as GGML
# Of models that exist the largest have a tenth of that.
_MAX_TENSORS: Final = 1 << 16
_MAX_FIELDS: Final = 1 << 14
_MAX_ITEMS: Final = 1 << 23  # of all arrays
_MAX_HEADER: Final = 256 << 20  # [bytes]
_STRING, _ARRAY = 8, 9
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One tensor; `shape` with the fastest dimension last, as torch has it."""

    name: str
    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    data: memoryview

    def dequantized(self) -> npt.NDArray[np.float32]:
        """Its values in fp32, which holds every product of a scale and a quant exactly; bf16 would round."""
        rows = np.frombuffer(self.data, np.uint8).reshape(*self.shape[:-1], -1)
        if self.kind is GGMLQuantizationType.F32:
            return rows.view(np.float32)
        values: npt.NDArray[np.float32] = dequantize(rows, self.kind)
        return values


@dataclass(frozen=True, slots=True)
class _Info:
    """What the file says of a tensor: `start` [bytes] counts from where all tensors begin."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    start: int
    size: int


@dataclass(frozen=True, slots=True)
class GgufFile:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def open_gguf(path: Path, claim: Path | None = None) -> GgufFile:
    """Raises ConfigError where the file is no GGUF file, is cut short, or holds quants that nobody here can read.

    It also does where links lead out of the `claim`.
    """
    with opened(path, below=claim) as file:
        has_content = os.fstat(file.fileno()).st_size > 0
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if has_content else b""
    reader = _Reader(memoryview(mapped))
    try:
        return _parse(path, reader)
    except (struct.error, EOFError, UnicodeDecodeError, KeyError, ValueError, OverflowError) as error:
        hint = "copy it again, and compare `dstj doctor --digest` with the publisher's digest"
        where = f"{place(path)} is cut short or malformed at byte {reader.offset}"
        raise ConfigError(f"{where}: {first_line(error)}", hint=hint) from error


def _parse(path: Path, reader: "_Reader") -> GgufFile:
    if reader.take(4) != MAGIC:
        raise ConfigError(
            f"{place(path)} is not a GGUF file: it does not start with GGUF",
            hint="model.base.path names a .gguf file, or a directory with config.json and safetensors files",
        )
    version = reader.scalar("I")
    if version not in (2, 3):
        raise ConfigError(f"{place(path)} has GGUF version {version}: 2 and 3 are read", hint="convert it again")
    num_tensors, num_fields = reader.scalar("Q"), reader.scalar("Q")
    if num_tensors > _MAX_TENSORS or num_fields > _MAX_FIELDS:
        raise ValueError(f"{num_tensors:,} tensors and {num_fields:,} metadata, more than any model has")
    metadata = _once(reader.field() for _ in range(num_fields))
    infos = _once(_tensor_info(reader) for _ in range(num_tensors))
    reader.align(_alignment(metadata))
    _refuse_overlap(infos)
    return GgufFile(path, metadata, {name: _tensor(reader, name, info) for name, info in infos.items()})


def _once(entries: Iterable[tuple[str, T]]) -> dict[str, T]:
    found: dict[str, T] = {}
    for name, value in entries:
        if name in found:
            raise ValueError(f"{shown(name)} stands there twice")
        found[name] = value
    return found


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= _MAX_ALIGNMENT or alignment % 8:
        raise ValueError(f"general.alignment is {shown(alignment)}, and not a multiple of 8 up to {_MAX_ALIGNMENT:,}")
    return alignment


def _tensor_info(reader: "_Reader") -> tuple[str, _Info]:
    name, rank = reader.string(), reader.scalar("I")
    if not 0 < rank <= _MAX_RANK:
        raise ValueError(f"{shown(name)} has {rank} dimensions, and not 1 to {_MAX_RANK}")
    shape = tuple(reader.scalar("Q") for _ in range(rank))[::-1]
    kind, start = GGMLQuantizationType(reader.scalar("I")), reader.scalar("Q")
    values_per_block, bytes_per_block = GGML_QUANT_SIZES[kind]
    if 0 in shape or shape[-1] % values_per_block:
        raise ValueError(f"{shown(name)} of shape {shape} is not made of blocks of {values_per_block}")
    return name, _Info(shape, kind, start, math.prod(shape) // values_per_block * bytes_per_block)


def _refuse_overlap(infos: Mapping[str, _Info]) -> None:
    end = 0
    for name, info in sorted(infos.items(), key=lambda entry: entry[1].start):
        if info.start < end:
            raise ValueError(f"{shown(name)} begins inside of another tensor")
        end = info.start + info.size


def _tensor(reader: "_Reader", name: str, info: _Info) -> GgufTensor:
    return GgufTensor(name, info.shape, info.kind, reader.peek(reader.offset + info.start, info.size))


class _Reader:
    """A position in little-endian bytes; never reads past their end, nor more than a model's metadata have."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.offset, self._items = data, 0, 0

    def peek(self, start: int, size: int) -> memoryview:
        if start + size > len(self._data):
            raise EOFError(f"{size} bytes wanted, {max(0, len(self._data) - start)} left")
        return self._data[start : start + size]

    def take(self, size: int) -> bytes:
        if self.offset + size > _MAX_HEADER:
            raise ValueError(f"metadata of more than {_MAX_HEADER >> 20} MiB")
        taken = bytes(self.peek(self.offset, size))
        self.offset += size
        return taken

    def align(self, alignment: int) -> None:
        self.offset += -self.offset % alignment

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self.offset)
        self.offset += struct.calcsize(code)
        return value

    def field(self) -> tuple[str, Any]:
        return self.string(), self.value(self.scalar("I"))

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode()

    def value(self, kind: int) -> Any:
        """A metadata value; fp32 as the shortest decimal that names it."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.scalar("I"), self.scalar("Q"))
        if kind not in _SCALARS:
            raise ValueError(f"a value of type {kind}, which GGUF does not have")
        value = self.scalar(_SCALARS[kind])
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("a number that is not finite")
        return float(str(np.float32(value))) if _SCALARS[kind] == "f" else value

    def _array(self, kind: int, length: int) -> list[Any]:
        self._items += length
        if self._items > _MAX_ITEMS:
            raise ValueError(f"arrays of more than {_MAX_ITEMS:,} elements in all")
        if kind == _STRING:
            return [self.string() for _ in range(length)]
        if kind not in _SCALARS:
            raise ValueError("an array of arrays, or of a type that GGUF does not have")
        code = _SCALARS[kind]
        values = struct.unpack(f"<{length}{code}", self.take(length * struct.calcsize(code)))
        return list(values)
