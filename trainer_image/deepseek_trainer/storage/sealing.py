"""Sealed files: Tink's AES256-GCM-HKDF streaming encryption with 1 MiB segments.

    offset  size  field
    0       1     40, the length of this header
    1       32    salt, fresh for each file
    33      7     nonce prefix, fresh for each file
    40      n     segments, each AES-256-GCM ciphertext and its 16-byte tag

    file key = HKDF-SHA256(input key, salt, info = associated data), 32 bytes
    nonce    = prefix || segment number (4 bytes, big-endian) || 1 in the last segment, 0 before it

Segment i ends at file offset (i + 1) * 1 MiB or at the end of the file; so segment 0, which follows the
header, holds 40 bytes less than the others.  Byte-compatible with Tink:
https://developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming
"""

import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Final, NamedTuple, Protocol, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.pool import POOL, THREADS, borrowed, give_back, on_threads

SEGMENT_BYTES = 1 << 20  # of ciphertext, tag and (in segment 0) header included; part of the format
TAG_BYTES: Final = 16
SALT_BYTES: Final = 32
PREFIX_BYTES: Final = 7
HEADER_BYTES: Final = 1 + SALT_BYTES + PREFIX_BYTES

Bytes = bytes | bytearray | memoryview
Told = Callable[[int], object]  # hears how many bytes were just read


# Segments under way before the oldest is written; on a single core, going to and fro between threads only costs.
AHEAD: Final = 2 * THREADS if THREADS > 1 else 0


def nobody(_size: int) -> None:
    """Hears nothing."""


class Sink(Protocol):
    """What a writer writes to, such as an unbuffered file; `write` says how many bytes it took."""

    def write(self, data: memoryview, /) -> int: ...


def as_bytes(data: Bytes) -> memoryview:
    """A flat view of any contiguous buffer, such as an array's."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # cast refuses a shape with a zero


def put(sink: Sink, data: memoryview) -> None:
    """Write all of `data`: one call may take less."""
    while data:
        data = data[sink.write(data) :]


class _Sealing(NamedTuple):
    """A segment that a thread seals."""

    done: Future[int]
    buffer: memoryview
    size: int  # with its tag [bytes]
    kept: memoryview | None  # our own copy of the plaintext, if it is one


class SealedWriter:
    """Seals a stream into `sink`.  The file is only complete, and can only be read, after `close`.

    What is given to `write` must stay as it is until `close`: threads seal it while the caller goes on.
    """

    def __init__(self, sink: Sink, key: bytes, associated_data: bytes, *, randomness: bytes | None = None) -> None:
        """`randomness`, salt and nonce prefix, is fixed by test vectors only: a reused one gives the key away."""
        randomness = randomness or os.urandom(SALT_BYTES + PREFIX_BYTES)
        self._sink = sink
        self._gcm = _cipher(key, randomness[:SALT_BYTES], associated_data)
        self._prefix, self.salt = randomness[SALT_BYTES:], randomness[:SALT_BYTES].hex()
        self._segment_bytes, self._index = SEGMENT_BYTES, 0
        self._running: deque[_Sealing] = deque()
        self._pending, self._filled = borrowed(self._segment_bytes), 0
        self._tags = hashlib.sha256()
        self.plain_size = 0
        self.size = 0
        self._put(memoryview(bytes([HEADER_BYTES]) + randomness))

    def write(self, data: Bytes) -> None:
        view = as_bytes(data)
        self.plain_size += len(view)
        while view:
            # A full segment waits until more data show that it is not the last.
            if self._filled == self._room:
                self._seal_pending()
            elif self._filled == 0 and len(view) > self._room:
                room = self._room
                self._seal(view[:room], None, is_last=False)
                view = view[room:]
            else:
                view = view[self._keep(view) :]

    def close(self) -> None:
        """Seal the last segment.  `sink` stays open."""
        self._seal(self._pending[: self._filled], self._pending, is_last=True)
        while self._running:
            self._put_next()

    @property
    def digest(self) -> str:
        """SHA-256 over the tags of all segments, in order."""
        return self._tags.hexdigest()

    @property
    def _room(self) -> int:
        """Plaintext bytes that the current segment holds."""
        return self._segment_bytes - TAG_BYTES - (HEADER_BYTES if self._index == 0 else 0)

    def _keep(self, view: memoryview) -> int:
        count = min(self._room - self._filled, len(view))
        self._pending[self._filled : self._filled + count] = view[:count]
        self._filled += count
        return count

    def _seal_pending(self) -> None:
        kept, filled = self._pending, self._filled
        self._pending, self._filled = borrowed(self._segment_bytes), 0
        self._seal(kept[:filled], kept, is_last=False)

    def _seal(self, plain: memoryview, kept: memoryview | None, *, is_last: bool) -> None:
        buffer, size = borrowed(self._segment_bytes), len(plain) + TAG_BYTES
        nonce = _nonce(self._prefix, self._index, is_last)
        self._index += 1
        if not AHEAD:
            self._gcm.encrypt_into(nonce, plain, None, buffer[:size])
            self._put_sealed(buffer, size, kept)
            return
        done = POOL.submit(self._gcm.encrypt_into, nonce, plain, None, buffer[:size])
        self._running.append(_Sealing(done, buffer, size, kept))
        if len(self._running) > AHEAD:
            self._put_next()

    def _put_next(self) -> None:
        """Write the oldest segment."""
        segment = self._running.popleft()
        segment.done.result()
        self._put_sealed(segment.buffer, segment.size, segment.kept)

    def _put_sealed(self, buffer: memoryview, size: int, kept: memoryview | None) -> None:
        """Write a segment; its buffers are free again."""
        self._tags.update(buffer[size - TAG_BYTES : size])
        self._put(buffer[:size])
        give_back(buffer)
        if kept is not None:
            give_back(kept)

    def _put(self, data: memoryview) -> None:
        self.size += len(data)
        put(self._sink, data)


class SealedReader:
    """Random access to a sealed file.

    Opening authenticates the last segment and so the size: a file that was cut at a segment's border is
    refused at once.  Every method raises IntegrityError for bytes that do not authenticate; no such byte is
    ever returned.
    """

    def __init__(self, path: Path, key: bytes, associated_data: bytes) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            self._open(key, associated_data)
        except BaseException:
            self._file.close()
            raise

    def _open(self, key: bytes, associated_data: bytes) -> None:
        self._segment_bytes = SEGMENT_BYTES
        self.sealed_size = os.fstat(self._file.fileno()).st_size
        header = os.pread(self._file.fileno(), HEADER_BYTES, 0)
        if len(header) < HEADER_BYTES or header[0] != HEADER_BYTES:
            raise IntegrityError(f"{self.path} is not a sealed file", hint="it is cut short or was never sealed")
        self._count = -(-self.sealed_size // self._segment_bytes)
        if self._span(self._count - 1)[1] < TAG_BYTES:
            raise self._cut()
        self.size = self.sealed_size - HEADER_BYTES - TAG_BYTES * self._count
        self._gcm = _cipher(key, header[1 : 1 + SALT_BYTES], associated_data)
        self._prefix, self.salt = header[1 + SALT_BYTES :], header[1 : 1 + SALT_BYTES].hex()
        self._plain = borrowed(self._segment_bytes)
        self._cached, self._cached_size = -1, 0
        self._segment(self._count - 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        spare, self._plain, self._cached = self._plain, memoryview(b""), -1
        give_back(spare)

    def read_at(self, offset: int, length: int) -> bytearray:
        """`length` bytes of plaintext from `offset`, fewer at the end of the file."""
        content = bytearray(max(0, min(length, self.size - offset)))
        self.read_onto(offset, memoryview(content))
        return content

    def read_onto(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the plaintext from `offset`; the file must have as much."""
        whole: list[tuple[int, memoryview]] = []  # segments of which every byte is wanted
        filled = 0
        while filled < len(target):
            index, start = self._place(offset + filled)
            size = self._span(index)[1] - TAG_BYTES
            part = target[filled : filled + size - start]
            filled += len(part)
            if len(part) == size:
                whole.append((index, part))
            else:
                part[:] = self._segment(index)[start : start + len(part)]
        on_threads(lambda each: self._unseal(*each), whole)

    def read_into(self, target: memoryview) -> str:
        """Unseal the whole file into `target`, of `size` bytes; returns the digest over its tags."""
        parts, filled = [], 0
        for index in range(self._count):
            length = self._span(index)[1] - TAG_BYTES
            parts.append((index, target[filled : filled + length]))
            filled += length
        return _digest(on_threads(lambda each: self._unseal(*each), parts))

    def pieces(self) -> Iterator[memoryview]:
        """The plaintext in order; each piece is valid until the next."""
        for index in range(self._count):
            yield self._segment(index)

    def verify(self, tell: Told = nobody) -> str:
        """Authenticate every byte; returns the digest over the tags.

        `tell` hears of each piece [bytes], in any thread.
        """

        def verified(index: int) -> bytes:
            plain, length = borrowed(self._segment_bytes), self._span(index)[1]
            tag = self._unseal(index, plain[: length - TAG_BYTES])
            give_back(plain)
            tell(length)
            return tag

        return _digest(on_threads(verified, range(self._count)))

    def _place(self, offset: int) -> tuple[int, int]:
        """Segment that holds the plaintext byte `offset`, and where in its plaintext."""
        # Counted as if the header were plaintext of segment 0, all segments hold the same number of bytes.
        index, start = divmod(offset + HEADER_BYTES, self._segment_bytes - TAG_BYTES)
        return index, start - (HEADER_BYTES if index == 0 else 0)

    def _span(self, index: int) -> tuple[int, int]:
        """Where segment `index` starts in the file, and its length with tag."""
        start = HEADER_BYTES if index == 0 else index * self._segment_bytes
        return start, min((index + 1) * self._segment_bytes, self.sealed_size) - start

    def _segment(self, index: int) -> memoryview:
        if self._cached != index:
            self._cached, self._cached_size = -1, self._span(index)[1] - TAG_BYTES
            self._unseal(index, self._plain[: self._cached_size])
            self._cached = index
        return self._plain[: self._cached_size]

    def _unseal(self, index: int, target: memoryview) -> bytes:
        """Decrypt segment `index` into `target`; returns its tag.  Threads may do so at the same time."""
        buffer = borrowed(self._segment_bytes)
        sealed = self._sealed(index, buffer)
        try:
            self._gcm.decrypt_into(_nonce(self._prefix, index, index == self._count - 1), sealed, None, target)
        except InvalidTag:
            target[:] = bytes(len(target))  # holds what did not authenticate
            raise IntegrityError(
                f"{self.path}: segment {index + 1} of {self._count} does not authenticate",
                hint="the file was changed, cut or moved from another place, or it was sealed with another key",
            ) from None
        tag = bytes(sealed[-TAG_BYTES:])
        give_back(buffer)
        return tag

    def _sealed(self, index: int, buffer: memoryview) -> memoryview:
        """Segment `index` as it lies in the file, in `buffer`.

        A copy and not a mapping of the file: what is decrypted must be the very bytes that were authenticated, and a
        volume that fails must raise an error and not a SIGBUS.
        """
        start, length = self._span(index)
        if os.preadv(self._file.fileno(), [buffer[:length]], start) != length:
            raise self._cut()
        return buffer[:length]

    def _cut(self) -> IntegrityError:
        return IntegrityError(f"{self.path} is cut short at {self.sealed_size} bytes", hint="copy the file again")


def _digest(tags: Iterable[bytes]) -> str:
    return hashlib.sha256(b"".join(tags)).hexdigest()


def _cipher(key: bytes, salt: bytes, associated_data: bytes) -> AESGCM:
    assert len(key) == 32, "AES-256"
    return AESGCM(HKDF(hashes.SHA256(), 32, salt, associated_data).derive(key))


def _nonce(prefix: bytes, index: int, is_last: bool) -> bytes:
    return prefix + struct.pack(">IB", index, is_last)
