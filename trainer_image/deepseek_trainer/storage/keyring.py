"""The keyring: the job's data keys (DEKs), each wrapped by one or several key-encryption keys (KEKs).

A DEK is 32 random bytes.  It is made once per job and stored only wrapped, in keyring.json beside the checkpoints.
The keyring is authenticated under its primary DEK, so every recipient can check what another one wrote, and each
wrapped DEK is bound to the job.  What changes a keyring is in storage/rotation.py.
"""

import hmac
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.foreign import first_of
from deepseek_trainer.contract.times import utc_now
from deepseek_trainer.storage.access import DENIED, denied
from deepseek_trainer.storage.derivation import derived
from deepseek_trainer.storage.durable import publish_file
from deepseek_trainer.storage.kek import Kek, UnwrapError
from deepseek_trainer.storage.keyring_format import (
    FORMAT,
    MAX_BYTES,
    Content,
    Content1,
    DataKey,
    Recipient,
    parsed_keyring,
)
from deepseek_trainer.storage.keys import KEY_BYTES, Key
from deepseek_trainer.storage.opening import opened

KEYRING: Final = "keyring.json"  # in the job's work directory
_RESTORE: Final = "restore the keyring from a backup; without it nothing that it sealed can be read"
_TRIES: Final = 10  # to read a keyring that is being replaced
_LISTED: Final = 5  # ids in a message


@dataclass(frozen=True, slots=True)
class Keyring:
    """The DEKs of one job, unwrapped.  The first one seals, and all of them read.  repr shows ids only."""

    path: Path
    job: str
    keys: tuple[Key, ...]
    opener: Kek = field(repr=False)  # which opened it
    content: Content | Content1 = field(repr=False)

    @classmethod
    def create(cls, path: Path, job: str, kek: Kek) -> Self:
        """Make a keyring with a new DEK.  If another rank is faster, its keyring counts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = (Key.random(),)
        made = {fresh[0].id: utc_now()}
        publish_file(path, issued(job, fresh, made, (recipient(kek, job, fresh),)).to_json())
        return cls.open(path, job, [kek])

    @classmethod
    def open(cls, path: Path, job: str, keks: Sequence[Kek]) -> Self:
        """Raises IntegrityError for a wrong KEK and for a keyring that is missing, changed, shredded or foreign."""
        content = read_keyring(path)
        if content.job != job:
            raise IntegrityError(
                f"{path} belongs to job {content.job}, not to {job}", hint="give each job a volume of its own"
            )
        opener = _opener(path, content, keks)
        if isinstance(content, Content):
            keys = _unwrapped(path, content, opener)
            _authenticate(path, content, keys)
        else:
            keys = _unwrapped_1(path, content, keks)
        return cls(path, job, tuple(sorted(keys, key=lambda key: key.id != content.primary)), opener, content)

    @property
    def recipients(self) -> tuple[Recipient, ...]:
        """The recipients.  One of format 1 is wrapped anew for the KEK that opened it."""
        if isinstance(self.content, Content):
            return self.content.recipients
        return (recipient(self.opener, self.job, self.keys),)

    @property
    def is_current(self) -> bool:
        """Whether it has the newest format."""
        return isinstance(self.content, Content)

    def for_recipients(self, recipients: Sequence[Recipient]) -> Content:
        """The same DEKs for these recipients."""
        return issued(self.job, self.keys, {key.id: key.created for key in self.content.keys}, tuple(recipients))


def recipient(kek: Kek, job: str, keys: Sequence[Key]) -> Recipient:
    """`keys` wrapped by `kek`, each bound to the job and to its id."""
    wrapped = {key.id: kek.wrap(key.material, context_of(job, key.id)).hex() for key in keys}
    return Recipient(kek=kek.id, created=utc_now(), wrapped=wrapped)


def issued(job: str, keys: Sequence[Key], created: dict[str, str], recipients: tuple[Recipient, ...]) -> Content:
    """A keyring with its MAC; the first of `keys` is the primary."""
    entries = tuple(DataKey(id=key.id, created=created[key.id], commitment=_commitment(key)) for key in keys)
    content = Content(
        format=FORMAT, job=job, primary=keys[0].id, keys=entries, recipients=recipients, mac="0" * 2 * KEY_BYTES
    )
    return content.model_copy(update={"mac": _mac(keys[0], content)})


def context_of(job: str, key_id: str) -> bytes:
    """What a wrapped DEK is bound to."""
    return "\n".join((FORMAT, job, key_id)).encode()


def owner_of(path: Path) -> str:
    """The job, "namespace/name", that a keyring names as its own.  Only one of its KEKs proves it."""
    return read_keyring(path).job


def read_keyring(path: Path) -> Content | Content1:
    """What a keyring says of itself; nothing of it is authenticated.

    Raises IntegrityError where the file is missing, shredded, or no keyring.
    """
    try:
        content = parsed_keyring(_raw(path))
    except FileNotFoundError:
        raise IntegrityError(f"no keyring {path}: what the job sealed cannot be read", hint=_RESTORE) from None
    except OSError as error:
        if error.errno in DENIED:
            raise denied(path, error) from None
        raise IntegrityError(f"{path} cannot be read: {os.strerror(error.errno or 0)}", hint=_RESTORE) from None
    except ValueError as error:
        raise IntegrityError(f"{path} is not a {FORMAT} keyring: {error}", hint=_RESTORE) from None
    if not content.keys:
        raise IntegrityError(f"{path} was shredded: what the job sealed is lost", hint="start over in an empty volume")
    return content


def _raw(path: Path) -> bytes:
    """The bytes of the file.  One that was replaced meanwhile may be overwritten by now, and is read again."""
    for _ in range(_TRIES):
        with opened(path, below=path.parent, max_bytes=MAX_BYTES, refusal=IntegrityError) as file:
            content = file.read(MAX_BYTES)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return content
    raise IntegrityError(f"{path} changes all the time", hint="see who writes it")


def _opener(path: Path, content: Content | Content1, keks: Sequence[Kek]) -> Kek:
    """The KEK of the first recipient that we have."""
    given = {kek.id: kek for kek in keks}
    for each in content.keks:
        if each in given:
            return given[each]
    raise _wrong_key(path, content.keks, tuple(given))


def _wrong_key(path: Path, wanted: Sequence[str], given: Sequence[str]) -> IntegrityError:
    keys = "key" if len(wanted) == 1 else "keys"
    return IntegrityError(
        f"wrong key: {path} is wrapped by the key-encryption {keys} {_listed(wanted)}, given: {_listed(given)}",
        hint="mount the Secret that the job was started with, or the one it was rotated to; `dstj keys inspect`",
    )


def _listed(ids: Sequence[str]) -> str:
    return first_of(ids, _LISTED, str) or "none"


def _unwrapped(path: Path, content: Content, kek: Kek) -> list[Key]:
    (ours,) = (each for each in content.recipients if each.kek == kek.id)
    keys = []
    for entry in content.keys:
        try:
            key = Key(kek.unwrap(bytes.fromhex(ours.wrapped[entry.id]), context_of(content.job, entry.id)))
        except (UnwrapError, ValueError):
            raise _changed(path, f"key {entry.id} does not unwrap for this job") from None
        if not hmac.compare_digest(_commitment(key), entry.commitment) or key.id != entry.id:
            raise _changed(path, f"key {entry.id} unwraps to another key than the one it commits to")
        keys.append(key)
    return keys


def _unwrapped_1(path: Path, content: Content1, keks: Sequence[Kek]) -> list[Key]:
    """Format 1 knew only KEKs of files, and one for each DEK."""
    files = {kek.id: kek for kek in keks if isinstance(kek, Key)}
    keys = []
    for entry in content.keys:
        if entry.kek not in files:
            raise _wrong_key(path, (entry.kek,), tuple(files))
        try:
            key = Key(files[entry.kek].unwrap_unbound(bytes.fromhex(entry.wrapped)))
        except (UnwrapError, ValueError):
            raise _changed(path, f"key {entry.id} does not unwrap") from None
        if key.id != entry.id:
            raise _changed(path, f"key {entry.id} unwraps to {key.id}")
        keys.append(key)
    return keys


def _authenticate(path: Path, content: Content, keys: Sequence[Key]) -> None:
    (primary,) = (key for key in keys if key.id == content.primary)
    if not hmac.compare_digest(_mac(primary, content), content.mac or ""):
        raise _changed(path, "it does not authenticate")


def _mac(primary: Key, content: Content) -> str:
    return hmac.digest(derived(primary, "keyring mac"), content.authenticated(), "sha256").hex()


def _commitment(key: Key) -> str:
    return derived(key, "commitment").hex()


def _changed(path: Path, problem: str) -> IntegrityError:
    return IntegrityError(f"{path}: {problem}: it was changed", hint=_RESTORE)
