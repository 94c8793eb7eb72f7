"""Writes and reads files in the clear, with the interface of sealed ones, for a job without a key."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.digests import ContentDigest
from deepseek_trainer.storage.opening import opened_own
from deepseek_trainer.storage.pool import POOL, THREADS
from deepseek_trainer.storage.streams import Advance, Bytes, Sink, as_bytes, put, unwatched

_CHUNK: Final = 1 << 20  # [bytes]


class ClearWriter:
    """Like SealedWriter, but it writes the content as it is; `digest` is that of the content.

    A thread computes it of large pieces while they are written.
    """

    salt: None = None

    def __init__(self, sink: Sink) -> None:
        self._sink, self._content, self.plain_size = sink, ContentDigest(), 0

    def write(self, data: Bytes) -> None:
        rest = as_bytes(data)
        self.plain_size += len(rest)
        if THREADS == 1 or len(rest) < _CHUNK:
            self._content.update(rest)
            put(self._sink, rest)
            return
        digested = POOL.submit(self._content.update, rest)
        try:
            put(self._sink, rest)
        finally:
            digested.result()

    def close(self) -> None: ...

    @property
    def size(self) -> int:
        return self.plain_size

    @property
    def digest(self) -> str:
        return str(self._content)


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

    def read_into(self, target: memoryview, like: str | None = None) -> str:
        content, filled = ContentDigest(like), 0
        for piece in self.pieces():
            target[filled : filled + len(piece)] = piece
            content.update(piece)
            filled += len(piece)
        return str(content)

    def pieces(self) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(_CHUNK))
        offset = 0
        while count := os.preadv(self._file.fileno(), [buffer], offset):
            yield buffer[:count]
            offset += count

    def verify(self, advance: Advance = unwatched, like: str | None = None) -> str:
        content = ContentDigest(like)
        for piece in self.pieces():
            content.update(piece)
            advance(len(piece))
        return str(content)
