"""Tells from bytes what they are: formats by magic numbers, text, and whether they are as even as random ones."""

import re
from collections import Counter
from typing import Final

from dstj.leaks.needles import Needle

HEAD_BYTES: Final = 4096  # as much of a file as `kind_of` wants to see
BLOCK_BYTES: Final = 1024
_LEAST_BYTES: Final = 64  # of a block that shows whether it is even

KEYRING, EVENTS, BOARD, JSON, TEXT, GZIP = "keyring", "events of a run", "TensorBoard events", "JSON", "text", "gzip"

_MAGIC: Final = (
    (b"GGUF", "GGUF model"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"Obj\x01", "Avro"),
    (b"\x89PNG", "PNG"),
    (b"\xff\xd8\xff\xe0", "JPEG"),
    (b"\xff\xd8\xff\xe1", "JPEG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF8", "GIF"),
    (b"RIFF", "RIFF (WebP, WAV)"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "zip (torch.save, .npz)"),
    (b"\x1f\x8b\x08\x00", GZIP),
    (b"\x1f\x8b\x08\x08", GZIP),
    (b"\x1f\x8b", GZIP),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ", "xz"),
    (b"BZh", "bzip2"),
    (b"\x04\x22\x4d\x18", "LZ4"),
    (b"\x93NUMPY", "NumPy array"),
    (b"\x89HDF", "HDF5"),
    (b"SQLite format 3", "SQLite"),
    (b"\x80\x02", "pickle"),
    (b"\x80\x03", "pickle"),
    (b"\x80\x04", "pickle"),
    (b"\x80\x05", "pickle"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
)
_TELLING_BYTES: Final = 4  # of a magic number that random bytes have once in four billion times

# What betrays a format wherever it stands, so long that random bytes and logs do not have it.
MARKS: Final = tuple(
    Needle(content, f"{what} inside")
    for content, what in (
        (b'"data_offsets":[', "safetensors"),
        (b"GGUF\x03\x00\x00\x00", "GGUF model"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "JPEG"),
        (b"PK\x03\x04\x00\x00\x08\x08", "zip of torch.save"),
        (b"\x93NUMPY\x01\x00", "NumPy array"),
        (b"SQLite format 3\x00", "SQLite"),
    )
)

# Where Pearson's statistic over 256 values lies for random bytes, give or take seven (below) and twenty (above) times
# its deviation: outside once in 10^17 blocks or less.
_EVEN: Final = (100, 707)
_SENTENCE: Final = re.compile(rb"[\t\n\r -~]{48}")  # a random byte begins as much ASCII once in 10^20


def kind_of(head: bytes) -> str | None:
    """What a file is whose first bytes are `head`; None if they tell nothing."""
    if kind := _by_magic(head, 1):
        return kind
    if b"brain.Event:" in head[:64]:
        return BOARD
    return _kind_of_text(head) if _is_text(head) else None


def magic_in_random(head: bytes) -> str | None:
    """Like `kind_of`, but by such signs alone as bytes that ought to be random do not have by chance."""
    return _by_magic(head, _TELLING_BYTES)


class Evenness:
    """Compares a stream with random bytes, a block at a time."""

    def __init__(self) -> None:
        self.first: int | None = None  # where the first block begins that is not random
        self.count = 0  # of such blocks
        self._size = 0

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the stream.  All but the last hold whole blocks."""
        starts = range(0, len(piece), BLOCK_BYTES)
        found = {start for start in starts if not _may_be_random(piece[start : start + BLOCK_BYTES])}
        found |= {match.start() // BLOCK_BYTES * BLOCK_BYTES for match in _SENTENCE.finditer(piece)}
        if found and self.first is None:
            self.first = self._size + min(found)
        self.count += len(found)
        self._size += len(piece)


def _may_be_random(block: bytes) -> bool:
    return len(block) < _LEAST_BYTES or _EVEN[0] < _statistic(block) < _EVEN[1]


def _statistic(block: bytes) -> float:
    """Pearson's statistic against even values: 255 on average where bytes are random, with a deviation of 23."""
    return 256 * sum(count * count for count in Counter(block).values()) / len(block) - len(block)


def _by_magic(head: bytes, least: int) -> str | None:
    for magic, kind in _MAGIC:
        if len(magic) >= least and head.startswith(magic):
            return kind
    return "safetensors" if _is_safetensors(head) else None


def _is_safetensors(head: bytes) -> bool:
    """Whether a header of a credible length begins with `{"`, after the eight bytes of its length."""
    return head[8:10] == b'{"' and 2 <= int.from_bytes(head[:8], "little") <= 100_000_000


def _is_text(head: bytes) -> bool:
    """Whether it is UTF-8, but for a letter that is cut at the end, and nearly all of it is printable."""
    text = head.decode(errors="ignore")
    fair = sum(letter.isprintable() or letter in "\n\r\t\x1b" for letter in text)
    return bool(head) and len(text.encode()) >= len(head) - 3 and fair >= 0.95 * len(text)


def _kind_of_text(head: bytes) -> str:
    first, _, _ = head.lstrip().partition(b"\n")
    if not first.startswith((b"{", b"[")):
        return TEXT
    if b'"dstj-keyring/' in head:
        return KEYRING
    return EVENTS if first.startswith(b'{"event": "') else JSON
