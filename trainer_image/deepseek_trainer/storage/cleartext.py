"""Writes and reads files in the clear, with the interface of sealed ones, for a job without a key."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.opening import opened_own
from deepseek_trainer.storage.streams import Advance, Bytes, Sink, as_bytes, put, unwatched

_CHUNK: Final = 1 << 20  # [bytes]


class ClearWriter:
    """Like SealedWriter, but it writes the content as it is; `digest` is its SHA-256."""

    salt: None = None

    def __init__(self, sink: Sink) -> None:
        self._sink, self._content, self.plain_size = sink, hashlib.sha256(), 0

    def write(self, data: Bytes) -> None:
        rest = as_bytes(data)
        self._content.update(rest)
        self.plain_size += len(rest)
        put(self._sink, rest)

    def close(self) -> None: ...

    @property
    def size(self) -> int:
        return self.plain_size

    @property
    def digest(self) -> str:
        return self._content.hexdigest()


class ClearReader:
    """Like SealedReader, but what it returns is not authenticated."""

    salt: None = None

    def __init__(self, path: Path) -> None:
        self._file = opened_own(path, buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read_at(self, offset: int, length: int) -> bytearray:
        content = bytearray(max(0, min(length, self.size - offset)))
        self.read_onto(offset, memoryview(content))
        return content

    def read_onto(self, offset: int, target: memoryview) -> None:
        while target:
            count = os.preadv(self._file.fileno(), [target], offset)
            if not count:
                raise IntegrityError(f"{self._file.name} is cut short", hint="copy the file again")
            offset, target = offset + count, target[count:]

    def read_into(self, target: memoryview) -> str:
        content, filled = hashlib.sha256(), 0
        for piece in self.pieces():
            target[filled : filled + len(piece)] = piece
            content.update(piece)
            filled += len(piece)
        return content.hexdigest()

    def pieces(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_CHUNK))
        offset = 0
        while count := os.preadv(self._file.fileno(), [buffer], offset):
            yield buffer[:count]
            offset += count

    def verify(self, advance: Advance = unwatched) -> str:
        content = hashlib.sha256()
        for piece in self.pieces():
            content.update(piece)
            advance(len(piece))
        return content.hexdigest()
