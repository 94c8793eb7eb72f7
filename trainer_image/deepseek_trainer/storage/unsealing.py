"""Reads sealed files; storage/segments.py describes their format."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.opening import opened_own
from deepseek_trainer.storage.pool import borrowed, give_back, on_threads
from deepseek_trainer.storage.segments import HEADER_BYTES, TAG_BYTES, Cipher, Layout, SegmentError
from deepseek_trainer.storage.streams import Advance, unwatched


class SealedReader:
    """Random access to a sealed file.

    Opening authenticates the last segment and thereby the size, so that a file that was cut at a segment's border is
    refused at once.  Every method raises IntegrityError for bytes that do not authenticate, and never returns one.
    """

    def __init__(self, path: Path, key: bytes, associated_data: bytes) -> None:
        self.path = path
        self._file = opened_own(path, buffering=0)
        try:
            self._open(key, associated_data)
        except BaseException:
            self._file.close()
            raise

    def _open(self, key: bytes, associated_data: bytes) -> None:
        self.sealed_size = os.fstat(self._file.fileno()).st_size
        header = os.pread(self._file.fileno(), HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES or header[0] != HEADER_BYTES:
            raise IntegrityError(f"{self.path} is not a sealed file", hint="it is cut short or was never sealed")
        self._layout = Layout(self.sealed_size)
        if not self._layout.has_whole_tags:
            raise self._cut()
        self._cipher = Cipher(key, header[1:], associated_data)
        self.size, self.salt = self._layout.plain_size, self._cipher.salt
        self._plain = borrowed(self._layout.segment_bytes)
        self._cached, self._cached_size = -1, 0
        self._segment(self._last)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        spare, self._plain, self._cached = self._plain, memoryview(b""), -1
        give_back(spare)

    def read_at(self, offset: int, length: int) -> bytearray:
        """`length` bytes of plaintext from `offset`; fewer at the end of the file."""
        content = bytearray(max(0, min(length, self.size - offset)))
        self.read_onto(offset, memoryview(content))
        return content

    def read_onto(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the plaintext from `offset`.  The file must hold as many bytes."""
        whole: list[tuple[int, memoryview]] = []  # segments of which every byte is wanted
        filled = 0
        while filled < len(target):
            index, start = self._layout.place(offset + filled)
            size = self._layout.plain_length(index)
            part = target[filled : filled + size - start]
            filled += len(part)
            if len(part) == size:
                whole.append((index, part))
            else:
                part[:] = self._segment(index)[start : start + len(part)]
        on_threads(lambda each: self._unseal(*each), whole)

    def read_into(self, target: memoryview, _like: str | None = None) -> str:
        """Unseal the whole file into `target`, which has `size` bytes; returns the digest over its tags."""
        parts, filled = [], 0
        for index in range(self._layout.count):
            length = self._layout.plain_length(index)
            parts.append((index, target[filled : filled + length]))
            filled += length
        return _digest(on_threads(lambda each: self._unseal(*each), parts))

    def pieces(self) -> Iterator[memoryview]:
        """The plaintext in order.  Each piece is valid until the next one is taken."""
        for index in range(self._layout.count):
            yield self._segment(index)

    def verify(self, advance: Advance = unwatched, _like: str | None = None) -> str:
        """Authenticate every byte; returns the digest over the tags.

        `advance` is called with the size of each piece [bytes], from any thread.
        """

        def verified(index: int) -> bytes:
            plain, length = borrowed(self._layout.segment_bytes), self._layout.span(index)[1]
            tag = self._unseal(index, plain[: length - TAG_BYTES])
            give_back(plain)
            advance(length)
            return tag

        return _digest(on_threads(verified, range(self._layout.count)))

    @property
    def _last(self) -> int:
        return self._layout.count - 1

    def _segment(self, index: int) -> memoryview:
        if self._cached != index:
            self._cached, self._cached_size = -1, self._layout.plain_length(index)
            self._unseal(index, self._plain[: self._cached_size])
            self._cached = index
        return self._plain[: self._cached_size]

    def _unseal(self, index: int, target: memoryview) -> bytes:
        """Decrypt segment `index` into `target`; returns its tag.  Several threads may call this at the same time."""
        buffer = borrowed(self._layout.segment_bytes)
        sealed = self._sealed(index, buffer)
        try:
            self._cipher.unseal(index, index == self._last, sealed, target)
        except SegmentError:
            raise IntegrityError(
                f"{self.path}: segment {index + 1} of {self._layout.count} does not authenticate",
                hint="the file was changed, cut or moved from another place, or it was sealed with another key",
            ) from None
        tag = bytes(sealed[-TAG_BYTES:])
        give_back(buffer)
        return tag

    def _sealed(self, index: int, buffer: memoryview) -> memoryview:
        """Read segment `index` as it lies in the file into `buffer`.

        The file is copied and not mapped: the bytes that are decrypted must be those that were authenticated, and a
        volume that fails must raise an error and not a SIGBUS.
        """
        start, length = self._layout.span(index)
        if os.preadv(self._file.fileno(), [buffer[:length]], start) != length:
            raise self._cut()
        return buffer[:length]

    def _cut(self) -> IntegrityError:
        return IntegrityError(f"{self.path} is cut short at {self.sealed_size} bytes", hint="copy the file again")


def _digest(tags: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(tags)).hexdigest()
