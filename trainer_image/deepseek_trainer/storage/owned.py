"""Files that may be destroyed: ours by type, owner and number of links, reached by the descriptor of their directory.

Whoever can write to the directory can put a link, a FIFO or somebody else's file under any name in it.
"""

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.foreign import shown

_LEAVE: Final = "it is left alone: see who put it there, and remove it"


class NotOursError(IntegrityError):
    """A file that is not ours to destroy."""


@contextmanager
def alone_in(directory: Path) -> Iterator[int]:
    """The descriptor of a directory.  Other changes of its keys wait, where the file system supports locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def own_file(directory: int, name: str, names: Sequence[str] = ()) -> Iterator[BinaryIO]:
    """A file of ours, to be read and overwritten.

    Raises NotOursError where it is a link or no regular file, belongs to somebody else, or has other names than
    `name` and `names`.
    """
    refuse_foreign(directory, name, names)
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(name, flags, dir_fd=directory), "r+b") as file:
        _refuse(directory, name, names, os.fstat(file.fileno()))  # it may have been changed for another one
        yield file


def refuse_foreign(directory: int, name: str, names: Sequence[str] = ()) -> None:
    """Raise NotOursError as `own_file` does.  Nothing is opened."""
    _refuse(directory, name, names, os.stat(name, dir_fd=directory, follow_symlinks=False))


def overwrite(file: BinaryIO) -> None:
    """Replace the content by zeros, on the disk."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    file.write(bytes(size))
    file.flush()
    os.fsync(file.fileno())


def _refuse(directory: int, name: str, names: Sequence[str], status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = "a link" if stat.S_ISLNK(status.st_mode) else "no regular file"
        raise NotOursError(f"{shown(name)} is {kind}", hint=_LEAVE)
    # A server may give all files to a user of its own; then the directory is that user's, too.
    if os.geteuid() not in (0, status.st_uid) and status.st_uid != os.fstat(directory).st_uid:
        raise NotOursError(f"{shown(name)} belongs to user {status.st_uid}", hint=_LEAVE)
    known = sum(_is(directory, each, status) for each in {name, *names})
    if status.st_nlink > known:
        raise NotOursError(f"{shown(name)} has {status.st_nlink - known} more names elsewhere", hint=_LEAVE)


def _is(directory: int, name: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(name, dir_fd=directory, follow_symlinks=False), status)
    except OSError:
        return False
