"""What a key-encryption key (KEK) does, wherever it is kept: in a mounted file, on a server, in a KMS.

The keyring (storage/keyring.py) knows no more of a KEK than this, and never asks for its bytes, so that a KEK which
never leaves its server is one file more.  A mounted file is the first implementation: `Key` in storage/keys.py.
"""

from typing import Protocol


class UnwrapError(Exception):
    """A wrapped key does not unwrap: it was changed, belongs to another context, or another KEK wrapped it."""


class Kek(Protocol):
    """Wraps data keys (DEKs) and unwraps them.

    A KEK that is out of reach raises TryAgainError, one that does not let us use it IntegrityError.
    """

    @property
    def id(self) -> str:
        """Names the KEK in keyrings and messages: up to 200 letters, digits and `._:/@-`, the same for ever.

        A key of a file has 16 hex digits.  Others begin with the name of their kind and a colon.
        """

    def wrap(self, dek: bytes, context: bytes) -> bytes:
        """`dek` encrypted and bound to `context`, in at most 4,096 bytes.

        Who may call this can give a job a data key of their own, so servers should let only those wrap who may unwrap.
        """

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """The DEK that `wrap` was given with the same `context`.  Raises UnwrapError for anything else."""
