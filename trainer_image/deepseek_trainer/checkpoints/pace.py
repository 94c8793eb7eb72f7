"""How fast a save beside a training on the CPU is written, so that both get their share of the processor."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from deepseek_trainer.storage.streams import Bytes, as_bytes

PIECE_BYTES: Final = 1 << 20
SLOWEST: Final = 100 * PIECE_BYTES  # [bytes/s]; sealing and writing so much takes a tenth of one core
SHARE: Final = 0.8  # of the time between two saves, in which one is to end


class Pace:
    """Spreads the writing of a save over the time until the next one.  Whoever waits for the save ends the pauses."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], object] | None = None
    ) -> None:
        """`pause` waits so many seconds, unless somebody waits for the save."""
        self._hurry = threading.Event()
        self._clock, self._pause = clock, pause or self._hurry.wait
        self._started: float | None = None
        self._interval_s: float | None = None  # between the last two saves

    def begin(self) -> None:
        """A save begins now."""
        now = self._clock()
        self._interval_s = None if self._started is None else now - self._started
        self._started = now
        self._hurry.clear()

    def hurry(self) -> None:
        """Somebody waits for the save, so no pause is left."""
        self._hurry.set()

    def through(self, pieces: Iterable[Bytes], size: int) -> Iterator[Bytes]:
        """`pieces`, which have `size` bytes in all, in small parts and with pauses."""
        start, taken, rate = self._clock(), 0, self._rate(size)
        for piece in pieces:
            whole = as_bytes(piece)
            for offset in range(0, len(whole), PIECE_BYTES):
                part = whole[offset : offset + PIECE_BYTES]
                yield part
                taken += len(part)
                ahead_s = start + taken / rate - self._clock()
                if ahead_s > 0 and not self._hurry.is_set():
                    self._pause(ahead_s)

    def _rate(self, size: int) -> float:
        """[bytes/s]"""
        return max(SLOWEST, size / (SHARE * self._interval_s)) if self._interval_s else SLOWEST
