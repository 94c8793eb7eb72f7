"""Writes sealed files; storage/segments.py describes their format."""

import hashlib
import os
from collections import deque
from concurrent.futures import Future
from typing import Final, NamedTuple

from deepseek_trainer.storage import segments
from deepseek_trainer.storage.pool import POOL, THREADS, borrowed, give_back
from deepseek_trainer.storage.segments import HEADER_BYTES, PREFIX_BYTES, SALT_BYTES, TAG_BYTES, Cipher
from deepseek_trainer.storage.streams import Bytes, Sink, as_bytes, put

# Segments that threads may seal before the oldest is written.  On a single core, threads only cost time.
AHEAD: Final = 2 * THREADS if THREADS > 1 else 0


class _Sealing(NamedTuple):
    """A segment that a thread seals."""

    done: Future[None]
    buffer: memoryview
    size: int  # with its tag [bytes]
    kept: memoryview | None  # our own copy of the plaintext, if it is one


class SealedWriter:
    """Seals a stream into `sink`.  The file is complete, and can be read, only after `close`.

    A buffer that was given to `write` must not change until `close`: threads seal it while the caller goes on.
    """

    def __init__(self, sink: Sink, key: bytes, associated_data: bytes, *, randomness: bytes | None = None) -> None:
        """`randomness` is salt and nonce prefix.  Only test vectors fix it: used twice, it gives the content away."""
        randomness = randomness or os.urandom(SALT_BYTES + PREFIX_BYTES)
        self._sink = sink
        self._cipher = Cipher(key, randomness, associated_data)
        self._segment_bytes, self._index = segments.SEGMENT_BYTES, 0
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
        """Seal the last segment and write what is left.  `sink` stays open."""
        self._seal(self._pending[: self._filled], self._pending, is_last=True)
        while self._running:
            self._put_next()

    @property
    def salt(self) -> str:
        return self._cipher.salt

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
        buffer, size, index = borrowed(self._segment_bytes), len(plain) + TAG_BYTES, self._index
        self._index += 1
        if not AHEAD:
            self._cipher.seal(index, is_last, plain, buffer[:size])
            self._put_sealed(buffer, size, kept)
            return
        done = POOL.submit(self._cipher.seal, index, is_last, plain, buffer[:size])
        self._running.append(_Sealing(done, buffer, size, kept))
        if len(self._running) > AHEAD:
            self._put_next()

    def _put_next(self) -> None:
        """Write the oldest segment."""
        segment = self._running.popleft()
        segment.done.result()
        self._put_sealed(segment.buffer, segment.size, segment.kept)

    def _put_sealed(self, buffer: memoryview, size: int, kept: memoryview | None) -> None:
        """Write a segment and give its buffers back."""
        self._tags.update(buffer[size - TAG_BYTES : size])
        self._put(buffer[:size])
        give_back(buffer)
        if kept is not None:
            give_back(kept)

    def _put(self, data: memoryview) -> None:
        self.size += len(data)
        put(self._sink, data)
