"""Keys: a key-encryption key (KEK) in a file, and the job's data key (DEK), which it wraps, in the keyring.

A KEK is a file of exactly 32 random bytes: an entry of a mounted Secret, or a private file on a laptop.
The DEK is 32 random bytes, made once per job and stored only wrapped (AES-KWP, RFC 5649) in keyring.json.
Rotating the KEK rewraps the keyring and touches no data; shredding the keyring loses all that it sealed.
Several KEKs may lie in one directory: the one that the keyring names by its id opens it.

No key byte is in any message, repr or log.  A key's id is the first 8 bytes of HMAC-SHA256(key, "dstj key id
v1"): keys are 256 random bits, so that an id lets nobody do better than guess them.
"""

import fcntl
import hmac
import json
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from cryptography.hazmat.primitives.keywrap import (
    InvalidUnwrap,
    aes_key_unwrap_with_padding,
    aes_key_wrap_with_padding,
)

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.times import utc_now
from deepseek_trainer.storage.durable import publish_file, replace_file, storing, sync

KEY_BYTES: Final = 32
FORMAT: Final = "dstj-keyring/1"
KEYRING: Final = "keyring.json"  # in the job's work directory
_GENERATE = "dstj keys generate --secret NAME, or: head -c 32 /dev/urandom > kek; chmod 600 kek"


class Key:
    """32 secret bytes that do not show themselves."""

    __slots__ = ("_material", "id")

    def __init__(self, material: bytes) -> None:
        assert len(material) == KEY_BYTES
        self._material = bytes(material)
        self.id = hmac.digest(self._material, b"dstj key id v1", "sha256")[:8].hex()

    @property
    def material(self) -> bytes:
        return self._material

    def __repr__(self) -> str:
        return f"Key({self.id})"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not serialised: wrap it")


def generate_kek(path: Path) -> Key:
    """Make a new KEK file, readable by its owner only.  Raises ConfigError if there is one already."""
    key = Key(secrets.token_bytes(KEY_BYTES))
    is_first = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not publish_file(path, key.material):
        raise ConfigError(f"{path} exists: a key is never overwritten", hint="choose another name")
    if is_first:
        sync(path.parent.parent)
    return key


def read_kek(path: Path) -> Key:
    """Raises IntegrityError where the file is missing, has another length, or is open to others.

    Nobody but the owner may have access: root or we, unless we are root.  A file of root may be readable by our group
    as well: that is how the kubelet mounts a Secret, as root's and the pod's fsGroup's.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            material = file.read(4 * KEY_BYTES)
    except OSError as error:
        raise IntegrityError(
            f"no key-encryption key: {path}: {os.strerror(error.errno or 0)}",
            hint=f"{_GENERATE}; in a cluster, give the Secret the entry that keyRef.key names",
        ) from None
    _check_access(path, status)
    if len(material) != KEY_BYTES:
        raise IntegrityError(_wrong_length(path, material), hint=_GENERATE)
    return Key(material)


def key_files(directory: Path) -> list[Path]:
    """Files of a directory, such as a mounted Secret, that may be KEKs."""
    try:
        files = sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise IntegrityError(f"no keys: {directory}: {os.strerror(error.errno or 0)}", hint=_GENERATE) from None
    return [path for path in files if not path.name.startswith(".") and ".partial-" not in path.name]


def keks_in(directory: Path) -> list[Key]:
    """All KEKs of a directory; what is none, or cannot be read, is passed over where there is a KEK beside it."""
    keks, refused = [], []
    for path in key_files(directory):
        try:
            keks.append(read_kek(path))
        except IntegrityError as error:
            refused.append(error)
    if refused and not keks:
        raise refused[0]
    return keks


def keks_beside(path: Path) -> list[Key]:
    """The KEK at `path`, then those beside it."""
    named = read_kek(path)
    return [named, *(kek for kek in keks_in(path.parent) if kek.id != named.id)]


def _check_access(path: Path, status: os.stat_result) -> None:
    own = os.geteuid()
    if own and status.st_uid not in (0, own):
        raise IntegrityError(
            f"{path} belongs to user {status.st_uid}, who can change the key: it must be root's or ours",
            hint=f"chown {own} {path}",
        )
    forbidden = 0o077 if status.st_uid == own else 0o027
    if (mode := stat.S_IMODE(status.st_mode)) & forbidden:
        raise IntegrityError(
            f"{path} has mode {mode:04o}: others than its owner can reach the key",
            hint=f"chmod 600 {path}; in a pod: defaultMode 0440 and an fsGroup",
        )


def _wrong_length(path: Path, material: bytes) -> str:
    length = f"more than {len(material) - 1}" if len(material) == 4 * KEY_BYTES else str(len(material))
    problem = f"{path} has {length} bytes, a key-encryption key has {KEY_BYTES}"
    return f"{problem}: raw bytes, not text" if material.isascii() and len(material) > KEY_BYTES else problem


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """One DEK as the keyring holds it."""

    id: str
    wrapped: str  # hex of AES-KWP(KEK, DEK)
    kek: str  # id of the KEK
    created: str  # RFC 3339

    def unwrapped(self, keks: Iterable[Key], path: Path) -> Key:
        """Raises IntegrityError where none of `keks` fits."""
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
        """The same DEK under another KEK."""
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
    """The DEKs of one job, unwrapped; the first seals, all can read.  repr shows ids only."""

    path: Path
    job: str
    keys: tuple[Key, ...]

    @classmethod
    def create(cls, path: Path, job: str, kek: Key) -> Self:
        """A keyring with a new DEK; the existing one if another rank has just made it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Key(secrets.token_bytes(KEY_BYTES))
        if publish_file(path, _to_json(job, [_wrap(fresh, kek)])):
            return cls(path, job, (fresh,))
        return cls.open(path, job, [kek])

    @classmethod
    def open(cls, path: Path, job: str, keks: Sequence[Key]) -> Self:
        """Raises IntegrityError for a missing, foreign, changed or shredded keyring and for a wrong KEK."""
        owner, wrapped = read_keyring(path)
        if owner != job:
            raise IntegrityError(
                f"{path} belongs to job {owner}, not to {job}", hint="give each job a volume of its own"
            )
        return cls(path, job, tuple(key.unwrapped(keks, path) for key in wrapped))


def rotate(path: Path, keks: Sequence[Key], kek: Key) -> bool:
    """Wrap the DEKs of a keyring, which one of `keks` or `kek` opens, under `kek`; False where they were already.

    In one step, and nothing that they sealed is touched; who has opened the keyring before goes on.
    Destroy the old KEK afterwards: it still opens copies of the old keyring.
    """
    with _alone_in(path.parent):
        owner, wrapped = read_keyring(path)
        rewrapped = [each.rewrapped([*keks, kek], kek, path) for each in wrapped]
        if rewrapped == wrapped:
            return False
        replace_file(path, _to_json(owner, rewrapped))
    return True


def renew(path: Path, kek_path: Path) -> tuple[Key, Key]:
    """Put a new KEK in the place of `kek_path` and wrap the keyring at `path` under it; the old KEK and the new one.

    The old one stays beside it as `<name>-<its id>`: at any moment one of the two opens the keyring.
    """
    with _alone_in(kek_path.parent):  # or the second of two could lay the key aside that the first wraps under
        old, *_ = keks = keks_beside(kek_path)
        Keyring.open(path, owner_of(path), keks)  # or there would be one more key that opens nothing
        new = _renewed(kek_path, old)
        rotate(path, keks, new)
    return old, new


def _renewed(path: Path, old: Key) -> Key:
    new, kept = Key(secrets.token_bytes(KEY_BYTES)), path.with_name(f"{path.name}-{old.id}")
    for name in (path.name, kept.name):
        for leftover in path.parent.glob(f"{name}.partial-*"):  # of a crash
            leftover.unlink()
    if not publish_file(kept, old.material, like=path) and read_kek(kept).id != old.id:
        raise ConfigError(f"{kept} holds another key than {path}, which it is named after", hint="rename it")
    replace_file(path, new.material)
    return new


def shred(path: Path) -> None:
    """Destroy the wrapped DEKs: overwrite them in place, then leave a keyring that says so.

    A snapshot, a backup or a copy-on-write disk may keep the old bytes: destroy the KEK as well.
    """
    with _alone_in(path.parent):
        owner, _ = read_keyring(path)
        with storing(path):
            for leftover in path.parent.glob(f"{path.name}.partial-*"):  # of a crash while rotating
                _overwrite(leftover)
                leftover.unlink()
            _overwrite(path)
            sync(path.parent)
        replace_file(path, _to_json(owner, []))


def _overwrite(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
        os.fsync(file.fileno())


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep those out who rotate or shred there at the same time, where the file system can."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def owner_of(path: Path) -> str:
    """The job, "namespace/name", that a keyring says it belongs to; proven only by what its keys open."""
    return read_keyring(path)[0]


def _to_json(job: str, keys: Sequence[WrappedKey]) -> bytes:
    content = {
        "format": FORMAT,
        "job": job,
        "primary": keys[0].id if keys else None,
        "keys": [{name: getattr(key, name) for name in WrappedKey.__slots__} for key in keys],
    }
    return json.dumps(content, indent=2).encode() + b"\n"


def read_keyring(path: Path) -> tuple[str, list[WrappedKey]]:
    """The job that it says it belongs to, and its keys, still wrapped, the primary first.

    Raises IntegrityError where it is missing, shredded, or no keyring.
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


class JobKeys:
    """A job's keyring that comes into being with the first file that is sealed."""

    def __init__(self, path: Path, job: str, keks: Sequence[Key]) -> None:
        """Opens the keyring if there is one, so that a wrong key is refused before any work is done."""
        self._path, self._job, self._keks = path, job, keks
        self._keyring = Keyring.open(path, job, keks) if path.exists() else None

    def __repr__(self) -> str:
        return f"JobKeys({self._path}, {self._job})"

    def rotate(self) -> None:
        """Wrap the job's DEKs, if it has any, under the first KEK where another one wraps them."""
        if self._path.exists():
            rotate(self._path, self._keks, self._keks[0])

    def to_seal(self) -> Key:
        """The primary DEK; made now if the job has none."""
        self._keyring = self._keyring or Keyring.create(self._path, self._job, self._keks[0])
        return self._keyring.keys[0]

    def to_read(self) -> tuple[Key, ...]:
        """All DEKs, the primary first.  Raises IntegrityError where there is no keyring."""
        self._keyring = self._keyring or Keyring.open(self._path, self._job, self._keks)
        return self._keyring.keys
