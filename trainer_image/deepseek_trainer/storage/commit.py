"""Directories that appear whole or not at all."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from deepseek_trainer.storage.durable import StorageError, beside, remove, sync
from deepseek_trainer.storage.renaming import EXCHANGE, PARTIAL, rename_with
from deepseek_trainer.storage.trees import entries_in

T = TypeVar("T")

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def committed(directory: Path) -> Iterator[Path]:
    """A partial directory to write into, which becomes `directory` at the end of the block.

    Its files are on the disk before it gets its name.  An older `directory` is replaced in one step where the file
    system can do that; NFS cannot, and there it is missing for a moment.  After an exception nothing remains.
    There must be one writer at a time: the leftovers of earlier, killed writers are removed.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    for leftover in directory.parent.glob(f"{directory.name}{PARTIAL}*"):
        remove(leftover)
    partial = beside(directory)
    partial.mkdir()
    try:
        yield partial
        _sync_tree(partial)
        _replace(directory, partial)
    finally:
        remove(partial, ignore_errors=True)


def remove_leftovers(directory: Path) -> bool:
    """Remove what killed writers left half written or half deleted in `directory`; returns whether there was any."""
    leftovers = [*directory.glob(f"*{PARTIAL}*"), *directory.glob("*.pruned-*")]
    for path in leftovers:
        remove(path)
    return bool(leftovers)


def with_room(directory: Path, work: Callable[[], T]) -> T:
    """Do `work`.  If the disk is full, remove the leftovers in `directory` and do it once more."""
    try:
        return work()
    except (StorageError, OSError) as error:
        if error.errno not in _FULL or not remove_leftovers(directory):
            raise
    return work()


def _replace(directory: Path, partial: Path) -> None:
    if not directory.exists():
        partial.rename(directory)
    elif not _exchanged(partial, directory):
        old = partial.with_name(f"{partial.name}-old")
        directory.rename(old)
        partial.rename(directory)
        old.rename(partial)
    sync(directory.parent)


def _exchanged(one: Path, other: Path) -> bool:
    try:
        rename_with(EXCHANGE, one, other)
    except OSError:
        return False
    return True


def _sync_tree(directory: Path) -> None:
    for path in entries_in(directory):
        sync(path)
    sync(directory)
