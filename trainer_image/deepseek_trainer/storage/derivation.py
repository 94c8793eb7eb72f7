"""Keys for one purpose each, derived from a key that does something else.

A key never does two things: what seals files neither names them nor authenticates a keyring.  HKDF-SHA256 (RFC 5869)
without salt, with the purpose as info: who has one derived key learns nothing about the key or about another one.
"""

from typing import Protocol

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


class Secret(Protocol):
    """A `Key` (storage/keys.py), which itself derives from its bytes what it wraps with."""

    @property
    def material(self) -> bytes: ...


def derived(key: Secret, purpose: str, length: int = 32) -> bytes:
    """`length` secret bytes that belong to `key` and `purpose` alone."""
    return HKDF(hashes.SHA256(), length, salt=None, info=f"dstj/{purpose}".encode()).derive(key.material)
