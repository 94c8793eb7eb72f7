"""The format of sealed files: Tink's AES256-GCM-HKDF streaming encryption with 1 MiB segments.

    offset  size  field
    0       1     40, the length of this header
    1       32    salt, fresh for each file
    33      7     nonce prefix, fresh for each file
    40      n     segments, each AES-256-GCM ciphertext and its 16-byte tag

    file key = HKDF-SHA256(input key, salt, info = associated data), 32 bytes
    nonce    = prefix || segment number (4 bytes, big-endian) || 1 in the last segment, 0 before it

Segment i ends at file offset (i + 1) * 1 MiB or at the end of the file.  Segment 0 follows the header and
therefore holds 40 bytes less than the others.  Byte-compatible with Tink:
https://developers.google.com/tink/streaming-aead/aes_gcm_hkdf_streaming
"""

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SEGMENT_BYTES = 1 << 20  # of ciphertext, tag and (in segment 0) header included; part of the format
KEY_BYTES: Final = 32
TAG_BYTES: Final = 16
SALT_BYTES: Final = 32
PREFIX_BYTES: Final = 7
HEADER_BYTES: Final = 1 + SALT_BYTES + PREFIX_BYTES


class SegmentError(Exception):
    """A segment does not authenticate."""


class Cipher:
    """Seals and opens the segments of one file; threads may share it."""

    def __init__(self, key: bytes, randomness: bytes, associated_data: bytes) -> None:
        """`randomness` is the salt and the nonce prefix of the file's header."""
        if len(key) != KEY_BYTES:
            raise ValueError(f"AES-256 has keys of {KEY_BYTES} bytes, not {len(key)}")
        salt, self._prefix = randomness[:SALT_BYTES], randomness[SALT_BYTES:]
        self._gcm = AESGCM(HKDF(hashes.SHA256(), KEY_BYTES, salt, associated_data).derive(key))
        self.salt = salt.hex()

    def seal(self, index: int, is_last: bool, plain: memoryview, sealed: memoryview) -> None:
        """Encrypt segment `index` into `sealed`, which is TAG_BYTES longer than `plain`."""
        self._gcm.encrypt_into(self._nonce(index, is_last), plain, None, sealed)

    def unseal(self, index: int, is_last: bool, sealed: memoryview, plain: memoryview) -> None:
        """Decrypt segment `index` into `plain`.  Raises SegmentError, and `plain` is then all zeros."""
        try:
            self._gcm.decrypt_into(self._nonce(index, is_last), sealed, None, plain)
        except InvalidTag:
            plain[:] = bytes(len(plain))  # it held what did not authenticate
            raise SegmentError from None

    def _nonce(self, index: int, is_last: bool) -> bytes:
        return self._prefix + struct.pack(">IB", index, is_last)


class Layout:
    """Where the segments of a sealed file of `sealed_size` bytes lie."""

    def __init__(self, sealed_size: int) -> None:
        self.segment_bytes, self._sealed_size = SEGMENT_BYTES, sealed_size
        self.count = -(-sealed_size // self.segment_bytes)
        self.plain_size = sealed_size - HEADER_BYTES - TAG_BYTES * self.count

    @property
    def has_whole_tags(self) -> bool:
        """False for a file that was cut inside the tag of its last segment."""
        return self.span(self.count - 1)[1] >= TAG_BYTES

    def span(self, index: int) -> tuple[int, int]:
        """Where segment `index` starts in the file, and its length with its tag."""
        start = HEADER_BYTES if index == 0 else index * self.segment_bytes
        return start, min((index + 1) * self.segment_bytes, self._sealed_size) - start

    def plain_length(self, index: int) -> int:
        """Bytes of plaintext in segment `index`."""
        return self.span(index)[1] - TAG_BYTES

    def place(self, offset: int) -> tuple[int, int]:
        """The segment that holds the plaintext byte `offset`, and where in its plaintext."""
        # If the header counted as plaintext of segment 0, all segments would hold the same number of bytes.
        index, start = divmod(offset + HEADER_BYTES, self.segment_bytes - TAG_BYTES)
        return index, start - (HEADER_BYTES if index == 0 else 0)
