"""Writes checkpoints out in the clear, for people who hold the key."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, place_of
from deepseek_trainer.checkpoints.manifest import MANIFEST
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.durable import remove, storing, sync
from deepseek_trainer.storage.streams import Advance, Bytes, unwatched
from deepseek_trainer.storage.vault import Context, Vault


def decrypt(info: CheckpointInfo, vault: Vault, target: Path, advance: Advance = unwatched) -> None:
    """Write a checkpoint's files into the new directory `target`, for its owner only.

    `advance` is called with the size of each piece [bytes].  Raises ConfigError if `target` exists; nothing remains
    of it after any other error.
    """
    with new_private_directory(target):
        for file in info.manifest.files:
            name, place = file.record.name, place_of(info, file)
            write_private(target / name, vault.pieces(info.path / name, place, file.record), advance)
        write_private(
            target / MANIFEST, [vault.read(info.path / MANIFEST, Context(info.step), digest=info.manifest_digest)]
        )


@contextmanager
def new_private_directory(target: Path) -> Iterator[None]:
    """A new directory for its owner only, gone after an exception in the block.  Raises ConfigError if it exists."""
    if target.exists():
        raise ConfigError(f"{target} exists: nothing is overwritten", hint="name a directory that does not exist")
    with storing(target):
        target.mkdir(parents=True, mode=0o700)
    try:
        yield
        sync(target)
    except BaseException:
        remove(target, ignore_errors=True)
        raise


def write_private(target: Path, pieces: Iterable[Bytes], advance: Advance = unwatched) -> None:
    """A new file for its owner only, on the disk when this returns."""
    with storing(target), _private_file(target) as file:
        for piece in pieces:
            file.write(piece)
            advance(len(piece))
        file.flush()
        os.fsync(file.fileno())


def _private_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
