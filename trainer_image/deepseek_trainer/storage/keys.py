"""Key-encryption keys (KEKs) in files of exactly 32 random bytes each.

A KEK is an entry of a mounted Secret, or a private file on a laptop.  Several may lie in one directory.  A keyring
(storage/keyring.py) names by their ids those that open it.

No message, repr or log contains a byte of a key.  A key's id is the first 8 bytes of HMAC-SHA256(key, "dstj key id
v1").  Keys are 256 random bits, so an id helps nobody to guess one; what is not random is refused.
"""

import hmac
import os
import secrets
import stat
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap_with_padding

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.storage.derivation import derived
from deepseek_trainer.storage.durable import publish_file, sync
from deepseek_trainer.storage.kek import UnwrapError
from deepseek_trainer.storage.opening import opened
from deepseek_trainer.storage.renaming import PARTIAL

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_FEW: Final = 16  # different bytes; 32 random ones have as few once in 10 billion keys
_GENERATE = "dstj keys generate --secret NAME, or: head -c 32 /dev/urandom > kek; chmod 600 kek"


class Key:
    """32 secret bytes that do not show themselves.  As a KEK (storage/kek.py) they wrap data keys."""

    __slots__ = ("_material", "id")

    def __init__(self, material: bytes) -> None:
        if len(material) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(material)}")
        self._material = bytes(material)
        self.id = hmac.digest(self._material, b"dstj key id v1", "sha256")[:8].hex()

    @classmethod
    def random(cls) -> "Key":
        return cls(secrets.token_bytes(KEY_BYTES))

    @property
    def material(self) -> bytes:
        return self._material

    def wrap(self, dek: bytes, context: bytes) -> bytes:
        """AES-256-GCM under a key derived from this one, with `context` as associated data: nonce, ciphertext, tag."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        return nonce + self._wrapping.encrypt(nonce, dek, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        try:
            return self._wrapping.decrypt(wrapped[:_NONCE_BYTES], wrapped[_NONCE_BYTES:], context)
        except (InvalidTag, ValueError):
            raise UnwrapError from None

    def unwrap_unbound(self, wrapped: bytes) -> bytes:
        """What keyrings of format 1 hold: AES-KWP (RFC 5649) under this key itself, bound to nothing."""
        try:
            return aes_key_unwrap_with_padding(self._material, wrapped)
        except (InvalidUnwrap, ValueError):
            raise UnwrapError from None

    @property
    def _wrapping(self) -> AESGCM:
        return AESGCM(derived(self, "wrap"))

    def __repr__(self) -> str:
        return f"Key({self.id})"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not serialised: wrap it")


def generate_kek(path: Path) -> Key:
    """Make a new KEK file, readable by its owner only.  Raises ConfigError if the file exists."""
    key = Key.random()
    is_first = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not publish_file(path, key.material):
        raise ConfigError(f"{path} exists: a key is never overwritten", hint="choose another name")
    if is_first:
        sync(path.parent.parent)
    return key


def read_kek(path: Path, *, may_be_weak: bool = False) -> Key:
    """Read a KEK file.  Raises IntegrityError where it is missing, no key, open to others, or not random.

    It must belong to root or to this user, and nobody else may have access.  There is one exception: a file of root
    may be readable by our group, because the kubelet mounts a Secret as root's and the pod's fsGroup's.

    Earlier versions took any 32 bytes.  `may_be_weak` still does, to rotate a keyring away from such a key.
    """
    try:
        with opened(path, refusal=IntegrityError) as file:
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
    if not may_be_weak and (weakness := _weakness(material)):
        raise IntegrityError(f"{path} {weakness}: it could be guessed", hint=_REPLACE)
    return Key(material)


_REPLACE: Final = (
    f"{_GENERATE}; if the key has sealed something: dstj keys rotate puts that under a new key, and so does an attempt "
    "of a job whose keyRef names the new key while the old one lies beside it in the Secret"
)


def key_files(directory: Path) -> list[Path]:
    """The files of a directory, such as a mounted Secret, that may be KEKs."""
    try:
        files = sorted(path for path in directory.iterdir() if path.is_file())
    except OSError as error:
        raise IntegrityError(f"no keys: {directory}: {os.strerror(error.errno or 0)}", hint=_GENERATE) from None
    return [path for path in files if not path.name.startswith(".") and PARTIAL not in path.name]


def keks_in(directory: Path, *, may_be_weak: bool = False) -> list[Key]:
    """All KEKs of a directory.

    A file that is no KEK, or cannot be read, is passed over.  If no KEK is left, the first such problem is raised.
    """
    keks, refused = [], []
    for path in key_files(directory):
        try:
            keks.append(read_kek(path, may_be_weak=may_be_weak))
        except IntegrityError as error:
            refused.append(error)
    if refused and not keks:
        raise refused[0]
    return keks


def keks_beside(path: Path, *, may_be_weak: bool = False) -> list[Key]:
    """The KEK at `path`, then those beside it, which may be weak: they open what they wrapped, and wrap nothing."""
    named = read_kek(path, may_be_weak=may_be_weak)
    return [named, *(kek for kek in keks_in(path.parent, may_be_weak=True) if kek.id != named.id)]


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
            hint=f"chmod 600 {path}; of a Secret: defaultMode 0440 and an fsGroup",
        )


def _wrong_length(path: Path, material: bytes) -> str:
    length = f"more than {len(material) - 1}" if len(material) == 4 * KEY_BYTES else str(len(material))
    problem = f"{path} has {length} bytes, a key-encryption key has {KEY_BYTES}"
    return f"{problem}: raw bytes, not text" if material.isascii() and len(material) > KEY_BYTES else problem


def _weakness(material: bytes) -> str:
    """What shows that a key is not random; empty if nothing does."""
    if _is_text(material.rstrip(b"\0")):
        return "is text, and a key-encryption key is 32 random bytes"
    if (distinct := len(set(material))) <= _FEW:
        return f"has {distinct} different bytes among {KEY_BYTES}, random ones have about 30"
    return ""


def _is_text(content: bytes) -> bool:
    try:
        return bool(content) and all(letter.isprintable() or letter.isspace() for letter in content.decode())
    except UnicodeDecodeError:
        return False
