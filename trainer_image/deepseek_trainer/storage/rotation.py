"""Gives a keyring to other recipients, or destroys it.  A lock lets one process at a time change a directory."""

import math
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final, TypeAlias

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.durable import publish_file, replace_file, storing
from deepseek_trainer.storage.kek import Kek
from deepseek_trainer.storage.keyring import Keyring, owner_of, recipient
from deepseek_trainer.storage.keyring_format import MAX_BYTES, Content, Recipient, parsed_keyring, shredded
from deepseek_trainer.storage.keys import Key, keks_beside, read_kek
from deepseek_trainer.storage.owned import NotOursError, alone_in, overwrite, own_file, refuse_foreign
from deepseek_trainer.storage.renaming import PARTIAL

_SETTLED: Final = 3600.0  # [s] after which nobody is still writing a keyring
Recipients: TypeAlias = tuple[Recipient, ...]


def rotate(path: Path, keks: Sequence[Kek], kek: Kek) -> bool:
    """Wrap the DEKs of a keyring under `kek`; returns False where it wraps them already.

    `kek` or one of `keks` must open the keyring.  `kek` takes the place of the recipient that opened it, and other
    recipients stay.  A keyring of format 1 becomes one of format 2.

    The keyring is replaced in one step.  What its DEKs sealed stays as it is, and a process that opened the keyring
    before goes on.  The old KEK still opens copies of the old keyring, so it should be destroyed afterwards.
    """

    def replaced(ring: Keyring) -> Recipients:
        if kek.id in ring.content.keks:
            return ring.recipients
        new = recipient(kek, ring.job, ring.keys)
        return tuple(new if each.kek == ring.opener.id else each for each in ring.recipients)

    return kek.id not in _given_to(path, [*keks, kek], replaced)


def rewrap(path: Path, keks: Sequence[Kek]) -> None:
    """Wrap the DEKs anew for the KEK that opens them: a server does that with the newest version of its key."""

    def anew(ring: Keyring) -> Recipients:
        new = recipient(ring.opener, ring.job, ring.keys)
        return tuple(new if each.kek == ring.opener.id else each for each in ring.recipients)

    _given_to(path, keks, anew)


def grant(path: Path, keks: Sequence[Kek], kek: Kek) -> bool:
    """Let `kek` open the keyring as well; returns False where it does already.  One of `keks` must open it."""

    def with_another(ring: Keyring) -> Recipients:
        known = kek.id in ring.content.keks
        return ring.recipients if known else (*ring.recipients, recipient(kek, ring.job, ring.keys))

    return kek.id not in _given_to(path, keks, with_another)


def revoke(path: Path, keks: Sequence[Kek], kek_id: str) -> None:
    """Let the KEK `kek_id` open the keyring no longer.  One of `keks`, which may be that one, must open it.

    Raises ConfigError where it does not open the keyring, or is the last one that does.
    """

    def without(ring: Keyring) -> Recipients:
        if kek_id not in ring.content.keks:
            raise ConfigError(f"{kek_id} does not open {path}", hint=f"these do: {', '.join(ring.content.keks)}")
        if len(ring.content.keks) == 1:
            raise ConfigError(
                f"{kek_id} is the last key that opens {path}",
                hint="dstj keys rotate or grant gives it to another one; dstj keys shred destroys it",
            )
        return tuple(each for each in ring.recipients if each.kek != kek_id)

    _given_to(path, keks, without)


def renew(path: Path, kek_path: Path) -> tuple[Key, Key]:
    """Replace the KEK at `kek_path` by a new one and wrap the keyring at `path` under it; returns the old and the new.

    The old one stays beside it as `<name>-<its id>`, so that at any moment one of the two opens the keyring.
    """
    # Without the lock, a second call could lay aside the key that the first one wraps under.
    with alone_in(kek_path.parent) as directory:
        old, *_ = keks = keks_beside(kek_path, may_be_weak=True)
        Keyring.open(path, owner_of(path), keks)  # before a new key is made that would open nothing
        new = _renewed(directory, kek_path, old)
        rotate(path, keks, new)
    return old, new


def _renewed(directory: int, path: Path, old: Key) -> Key:
    new, kept = Key.random(), path.with_name(f"{path.name}-{old.id}")
    written = path.with_name(f".{path.name}.partial")  # no key's name begins with a dot, so this one is ours
    _forget(directory, written.name, (kept.name,))
    is_new = publish_file(kept, old.material, like=path, written=written)
    if not is_new and read_kek(kept, may_be_weak=True).id != old.id:
        raise ConfigError(f"{kept} holds another key than {path}, which it is named after", hint="rename it")
    replace_file(path, new.material, written=written)
    return new


def _forget(directory: int, name: str, names: Sequence[str]) -> None:
    """Remove what a crash left, if it is ours."""
    try:
        refuse_foreign(directory, name, names)
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        pass


def shred(path: Path) -> list[str]:
    """Destroy the wrapped DEKs: overwrite them in place, then leave a keyring without keys.

    Returns the names beside it that look like a crash's leftovers, and are left alone because they are none of ours.
    A snapshot, a backup or a copy-on-write disk may keep the old bytes.  Destroying the KEK as well makes them useless.
    """
    with alone_in(path.parent) as directory, storing(path):
        job = owner_of(path)
        with own_file(directory, path.name, _leftovers(directory, path.name)) as file:
            left = _shred_leftovers(directory, path.name, job)
            overwrite(file)
        os.fsync(directory)
        replace_file(path, shredded(job).to_json())
    return left


def _given_to(path: Path, keks: Sequence[Kek], change: Callable[[Keyring], Recipients]) -> tuple[str, ...]:
    """Replace the recipients of a keyring; returns the ids that it had.  Nothing is written where nothing changes."""
    with alone_in(path.parent) as directory:
        ring = Keyring.open(path, owner_of(path), keks)
        recipients = change(ring)
        if not (ring.is_current and recipients == ring.recipients):
            _replace(directory, path, ring.for_recipients(recipients))
    return ring.content.keks


def _replace(directory: int, path: Path, content: Content) -> None:
    """Replace the keyring in one step, then overwrite the old one, which the old recipients open.

    An old one that has other names, such as a backup of hard links, keeps its content.
    """
    with storing(path), ExitStack() as stack:
        old = None
        with suppress(NotOursError):
            old = stack.enter_context(own_file(directory, path.name, _leftovers(directory, path.name)))
        replace_file(path, content.to_json())
        _shred_leftovers(directory, path.name, content.job, before=path.stat().st_mtime - _SETTLED)
        if old:
            overwrite(old)


def _leftovers(directory: int, name: str) -> list[str]:
    """Names as a crash leaves them beside the keyring `name`."""
    return sorted(each for each in os.listdir(directory) if each.startswith(f"{name}{PARTIAL}"))


def _shred_leftovers(directory: int, name: str, job: str, before: float = math.inf) -> list[str]:
    """Destroy the keyrings of the job that crashes left before that time [s]; returns the names that are no such thing.

    What is younger may be what another node is about to put in place: not every file system's locks reach that far.
    """
    left, leftovers = [], _leftovers(directory, name)
    for each in leftovers:
        try:
            with own_file(directory, each, [name, *leftovers]) as file:
                if os.fstat(file.fileno()).st_mtime > before:
                    continue
                if parsed_keyring(file.read(MAX_BYTES)).job != job:
                    raise ValueError("of another job")
                overwrite(file)
                os.unlink(each, dir_fd=directory)
        except (NotOursError, OSError, ValueError):
            left.append(each)
    return left
