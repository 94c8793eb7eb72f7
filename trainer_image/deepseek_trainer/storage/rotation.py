"""Puts a keyring under another key, or destroys it.  A lock lets one process at a time change a directory."""

import fcntl
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.durable import publish_file, replace_file, storing, sync
from deepseek_trainer.storage.keyring import Keyring, owner_of, read_keyring, to_json
from deepseek_trainer.storage.keys import KEY_BYTES, Key, keks_beside, read_kek


def rotate(path: Path, keks: Sequence[Key], kek: Key) -> bool:
    """Wrap the DEKs of a keyring under `kek`; returns False where it wraps them already.

    `kek` or one of `keks` must open the keyring.  It is replaced in one step.  What its DEKs sealed stays as it is, and
    a process that opened the keyring before goes on.  The old KEK still opens copies of the old keyring, so it should
    be destroyed afterwards.
    """
    with _alone_in(path.parent):
        owner, wrapped = read_keyring(path)
        rewrapped = [each.rewrapped([*keks, kek], kek, path) for each in wrapped]
        if rewrapped == wrapped:
            return False
        replace_file(path, to_json(owner, rewrapped))
    return True


def renew(path: Path, kek_path: Path) -> tuple[Key, Key]:
    """Replace the KEK at `kek_path` by a new one and wrap the keyring at `path` under it; returns the old and the new.

    The old one stays beside it as `<name>-<its id>`, so that at any moment one of the two opens the keyring.
    """
    with _alone_in(
        kek_path.parent
    ):  # without the lock, a second call could lay aside the key that the first one wraps under
        old, *_ = keks = keks_beside(kek_path)
        Keyring.open(path, owner_of(path), keks)  # before a new key is made that would open nothing
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
    """Destroy the wrapped DEKs: overwrite them in place, then leave a keyring without keys.

    A snapshot, a backup or a copy-on-write disk may keep the old bytes.  Destroying the KEK as well makes them useless.
    """
    with _alone_in(path.parent):
        owner, _ = read_keyring(path)
        with storing(path):
            for leftover in path.parent.glob(f"{path.name}.partial-*"):  # of a crash while rotating
                _overwrite(leftover)
                leftover.unlink()
            _overwrite(path)
            sync(path.parent)
        replace_file(path, to_json(owner, []))


def _overwrite(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(bytes(os.fstat(file.fileno()).st_size))
        os.fsync(file.fileno())


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep other rotations and shreddings of the directory waiting, where the file system supports locks."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
