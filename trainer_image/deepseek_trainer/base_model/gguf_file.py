"""Read a GGUF file: metadata and tensors, memory-mapped.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.  `gguf.GGUFReader` takes 4.5 s for
the 98 MB of SmolLM2-135M, because it makes numpy views of each of its 98,000 strings; this takes
0.2 s.  `gguf` still does the de-quantisation.
"""

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from deepseek_trainer.contract.errors import ConfigError

MAGIC: Final = b"GGUF"
_ALIGNMENT = 32  # [bytes], unless general.alignment says otherwise
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
class GgufFile:
    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]


def open_gguf(path: Path) -> GgufFile:
    """Raises ConfigError where the file is no GGUF file, is cut short, or holds quants that nobody here can read."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b""
    reader = _Reader(memoryview(mapped))
    try:
        return _parse(path, reader)
    except (struct.error, EOFError, UnicodeDecodeError, KeyError, ValueError, OverflowError) as error:
        hint = "copy it again, and compare `dstj doctor --digest` with the publisher's digest"
        raise ConfigError(f"{path} is cut short or malformed at byte {reader.offset}: {error}", hint=hint) from error


def _parse(path: Path, reader: "_Reader") -> GgufFile:
    if reader.take(4) != MAGIC:
        raise ConfigError(f"{path} is not a GGUF file: it does not start with GGUF")
    version = reader.scalar("I")
    if version not in (2, 3):
        raise ConfigError(f"{path} has GGUF version {version}: 2 and 3 are read")
    num_tensors, num_fields = reader.scalar("Q"), reader.scalar("Q")
    metadata = {reader.string(): reader.value(reader.scalar("I")) for _ in range(num_fields)}
    infos = [_tensor_info(reader) for _ in range(num_tensors)]
    reader.align(metadata.get("general.alignment", _ALIGNMENT))
    return GgufFile(path, metadata, {info[0]: _tensor(reader, *info) for info in infos})


def _tensor_info(reader: "_Reader") -> tuple[str, tuple[int, ...], GGMLQuantizationType, int]:
    name = reader.string()
    shape = tuple(reader.scalar("Q") for _ in range(reader.scalar("I")))
    return name, shape[::-1], GGMLQuantizationType(reader.scalar("I")), reader.scalar("Q")


def _tensor(reader: "_Reader", name: str, shape: tuple[int, ...], kind: GGMLQuantizationType, start: int) -> GgufTensor:
    values_per_block, bytes_per_block = GGML_QUANT_SIZES[kind]
    size = math.prod(shape) // values_per_block * bytes_per_block
    return GgufTensor(name, shape, kind, reader.peek(reader.offset + start, size))


class _Reader:
    """A position in little-endian bytes; never reads past their end."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.offset = data, 0

    def peek(self, start: int, size: int) -> memoryview:
        if start + size > len(self._data):
            raise EOFError(f"{size} bytes wanted, {max(0, len(self._data) - start)} left")
        return self._data[start : start + size]

    def take(self, size: int) -> bytes:
        taken = bytes(self.peek(self.offset, size))
        self.offset += size
        return taken

    def align(self, alignment: int) -> None:
        self.offset += -self.offset % alignment

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self._data, self.offset)
        self.offset += struct.calcsize(code)
        return value

    def string(self) -> str:
        return self.take(self.scalar("Q")).decode()

    def value(self, kind: int) -> Any:
        """A metadata value; fp32 as the shortest decimal that names it."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self._array(self.scalar("I"), self.scalar("Q"))
        value = self.scalar(_SCALARS[kind])
        return float(str(np.float32(value))) if _SCALARS[kind] == "f" else value

    def _array(self, kind: int, length: int) -> list[Any]:
        if kind in (_STRING, _ARRAY):
            return [self.value(kind) for _ in range(length)]
        code = _SCALARS[kind]
        values = struct.unpack(f"<{length}{code}", self.take(length * struct.calcsize(code)))
        return list(values)
