"""The keys of one job: its keyring, and the KEKs that open it."""

import hmac
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from deepseek_trainer.storage.derivation import derived
from deepseek_trainer.storage.kek import Kek
from deepseek_trainer.storage.keyring import Keyring
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.rotation import rotate

NAME_BYTES: Final = 20  # its 40 digits tell a name from a SHA-256, by which earlier versions named


class JobKeys:
    """A job's keyring, which is made when the first file is sealed."""

    def __init__(self, path: Path, job: str, keks: Sequence[Kek]) -> None:
        """Opens the keyring if it exists, so that a wrong key is refused before any work is done."""
        self._path, self._job, self._keks = path, job, keks
        self._keyring = Keyring.open(path, job, keks) if os.path.lexists(path) else None

    def __repr__(self) -> str:
        return f"JobKeys({self._path}, {self._job})"

    def rotate(self) -> None:
        """Wrap the job's DEKs under the first KEK.  Does nothing if the job has none, or it wraps them already.

        A keyring of format 1 becomes one of format 2.
        """
        if os.path.lexists(self._path):
            rotate(self._path, self._keks, self._keks[0])

    def to_seal(self) -> Key:
        """The primary DEK.  It is made now if the job has none."""
        self._keyring = self._keyring or Keyring.create(self._path, self._job, self._keks[0])
        return self._keyring.keys[0]

    def to_read(self) -> tuple[Key, ...]:
        """All DEKs, the primary first.  Raises IntegrityError where there is no keyring."""
        self._keyring = self._keyring or Keyring.open(self._path, self._job, self._keks)
        return self._keyring.keys

    def name_of(self, digest: str) -> str:
        """What stands for `digest` where everybody can read it: nobody without the key can compute it."""
        key = derived(self.to_seal(), "names v1")
        return hmac.digest(key, digest.encode(), "sha256")[:NAME_BYTES].hex()
