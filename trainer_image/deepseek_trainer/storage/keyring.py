"""The keyring: the job's data keys (DEKs), each wrapped by a key-encryption key (AES-KWP, RFC 5649).

A DEK is 32 random bytes.  It is made once per job and stored only wrapped, in keyring.json beside the checkpoints.
Rotating the KEK wraps the same DEKs anew and touches no data.  Shredding the keyring loses all that they sealed
(storage/rotation.py does both).
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.times import utc_now
from deepseek_trainer.storage.durable import publish_file
from deepseek_trainer.storage.keys import KEY_BYTES, Key

FORMAT: Final = "dstj-keyring/1"
KEYRING: Final = "keyring.json"  # in the job's work directory


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """One DEK as the keyring holds it."""

    id: str
    wrapped: str  # hex of AES-KWP(KEK, DEK)
    kek: str  # id of the KEK
    created: str  # RFC 3339

    def unwrapped(self, keks: Iterable[Key], path: Path) -> Key:
        """The DEK itself.  Raises IntegrityError where none of `keks` wraps it."""
        keks = list(keks)
        for kek in keks:
            if kek.id == self.kek:
                return self._unwrapped(kek, path)
        given = ", ".join(kek.id for kek in keks) or "none"
        raise IntegrityError(
            f"wrong key: {path} is wrapped by the key-encryption key {self.kek}, given: {given}",
            hint="mount the Secret that the job was started with, or the one it was rotated to; `dstj keys inspect`",
        )

    def rewrapped(self, keks: Iterable[Key], kek: Key, path: Path) -> Self:
        """The same DEK, wrapped by another KEK."""
        key = self.unwrapped(keks, path)
        return replace(self, wrapped=_wrap(key, kek).wrapped, kek=kek.id)

    def _unwrapped(self, kek: Key, path: Path) -> Key:
        try:
            key = Key(aes_key_unwrap_with_padding(kek.material, bytes.fromhex(self.wrapped)))
        except (InvalidUnwrap, ValueError, AssertionError):
            raise IntegrityError(f"{path}: key {self.id} does not unwrap: it was changed", hint=_RESTORE) from None
        if key.id != self.id:
            raise IntegrityError(f"{path}: key {self.id} unwraps to {key.id}: it was changed", hint=_RESTORE)
        return key


_RESTORE: Final = "restore the keyring from a backup; without it nothing that it sealed can be read"


def _wrap(key: Key, kek: Key) -> WrappedKey:
    return WrappedKey(key.id, aes_key_wrap_with_padding(kek.material, key.material).hex(), kek.id, utc_now())


@dataclass(frozen=True, slots=True)
class Keyring:
    """The DEKs of one job, unwrapped.  The first one seals, and all of them read.  repr shows ids only."""

    path: Path
    job: str
    keys: tuple[Key, ...]

    @classmethod
    def create(cls, path: Path, job: str, kek: Key) -> Self:
        """Make a keyring with a new DEK, or open the one that another rank has just made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Key(secrets.token_bytes(KEY_BYTES))
        if publish_file(path, to_json(job, [_wrap(fresh, kek)])):
            return cls(path, job, (fresh,))
        return cls.open(path, job, [kek])

    @classmethod
    def open(cls, path: Path, job: str, keks: Sequence[Key]) -> Self:
        """Raises IntegrityError for a wrong KEK and for a keyring that is missing, changed, shredded or foreign."""
        owner, wrapped = read_keyring(path)
        if owner != job:
            raise IntegrityError(
                f"{path} belongs to job {owner}, not to {job}", hint="give each job a volume of its own"
            )
        return cls(path, job, tuple(key.unwrapped(keks, path) for key in wrapped))


def owner_of(path: Path) -> str:
    """The job, "namespace/name", that a keyring names as its own.  Only a file that its keys open proves it."""
    return read_keyring(path)[0]


def to_json(job: str, keys: Sequence[WrappedKey]) -> bytes:
    content = {
        "format": FORMAT,
        "job": job,
        "primary": keys[0].id if keys else None,
        "keys": [{name: getattr(key, name) for name in WrappedKey.__slots__} for key in keys],
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def read_keyring(path: Path) -> tuple[str, list[WrappedKey]]:
    """The job that a keyring names as its own, and its wrapped keys, the primary first.

    Raises IntegrityError where the file is missing, shredded, or no keyring.
    """
    try:
        content = json.loads(path.read_bytes())
        keys = [WrappedKey(*(key[name] for name in WrappedKey.__slots__)) for key in content["keys"]]
        if content["format"] != FORMAT:
            raise ValueError
    except FileNotFoundError:
        raise IntegrityError(f"no keyring {path}: what the job sealed cannot be read", hint=_RESTORE) from None
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{path} is not a {FORMAT} keyring", hint=_RESTORE) from None
    if not keys:
        raise IntegrityError(f"{path} was shredded: what the job sealed is lost", hint="start over in an empty volume")
    return content["job"], sorted(keys, key=lambda key: key.id != content["primary"])
