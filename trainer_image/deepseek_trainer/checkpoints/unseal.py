"""Writes checkpoints and results out in the clear, for people who hold the key."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deepseek_trainer.checkpoints.catalog import CheckpointInfo, place_of
from deepseek_trainer.checkpoints.manifest import MANIFEST
from deepseek_trainer.contract.errors import ConfigError, DataError
from deepseek_trainer.storage.durable import remove, storing, sync
from deepseek_trainer.storage.streams import Advance, Bytes, unwatched
from deepseek_trainer.storage.trees import files_in
from deepseek_trainer.storage.vault import SUFFIX, Context, Vault


def decrypt(info: CheckpointInfo, vault: Vault, target: Path, advance: Advance = unwatched) -> None:
    """Write a checkpoint's files into the new directory `target`, for its owner only.

    `advance` is called with the size of each piece [bytes].  Raises ConfigError if `target` exists; nothing remains
    of it after any other error.
    """
    with _new_private_directory(target):
        for file in info.manifest.files:
            name, place = file.record.name, place_of(info, file)
            _write(target / name, vault.pieces(info.path / name, place, file.record), advance)
        _write(target / MANIFEST, [vault.read(info.path / MANIFEST, Context(info.step), digest=info.manifest_digest)])


def decrypt_result(source: Path, vault: Vault, target: Path, advance: Advance = unwatched) -> None:
    """Write the files of an exported result, with its subdirectories, into the new directory `target`."""
    files = [path.relative_to(source) for path in files_in(source)] if source.is_dir() else []
    if not files:
        raise DataError(f"no result in {source}", hint="it is there when the job has succeeded")
    with _new_private_directory(target):
        for file in files:
            name = file.with_name(file.name.removesuffix(SUFFIX))
            (target / name).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(target / name, vault.pieces(source / name), advance)


@contextmanager
def _new_private_directory(target: Path) -> Iterator[None]:
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


def _write(target: Path, pieces: Iterable[Bytes], advance: Advance = unwatched) -> None:
    with storing(target), _private_file(target) as file:
        for piece in pieces:
            file.write(piece)
            advance(len(piece))
        file.flush()
        os.fsync(file.fileno())


def _private_file(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
