"""Key-encryption keys (KEKs): a file of exactly 32 random bytes each.

A KEK is an entry of a mounted Secret, or a private file on a laptop.  Several may lie in one directory.  A keyring
(storage/keyring.py) names by its id the one that opens it.

No message, repr or log contains a byte of a key.  A key's id is the first 8 bytes of HMAC-SHA256(key, "dstj key id
v1").  Keys are 256 random bits, so an id helps nobody to guess one.
"""

import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.storage.durable import publish_file, sync

KEY_BYTES: Final = 32
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
    """Make a new KEK file, readable by its owner only.  Raises ConfigError if the file exists."""
    key = Key(secrets.token_bytes(KEY_BYTES))
    is_first = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not publish_file(path, key.material):
        raise ConfigError(f"{path} exists: a key is never overwritten", hint="choose another name")
    if is_first:
        sync(path.parent.parent)
    return key


def read_kek(path: Path) -> Key:
    """Read a KEK file.  Raises IntegrityError where it is missing, has another length, or is open to others.

    It must belong to root or to this user, and nobody else may have access.  There is one exception: a file of root
    may be readable by our group, because the kubelet mounts a Secret as root's and the pod's fsGroup's.
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
    """The files of a directory, such as a mounted Secret, that may be KEKs."""
    try:
        files = sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise IntegrityError(f"no keys: {directory}: {os.strerror(error.errno or 0)}", hint=_GENERATE) from None
    return [path for path in files if not path.name.startswith(".") and ".partial-" not in path.name]


def keks_in(directory: Path) -> list[Key]:
    """All KEKs of a directory.

    A file that is no KEK, or cannot be read, is passed over.  If no KEK is left, the first such problem is raised.
    """
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
