"""Files that are on the disk once a call returns, and errors of the disk that say what to do."""

import errno
import io
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Final, Self

from deepseek_trainer.contract.errors import TryAgainError, UnreadableError
from deepseek_trainer.storage.access import DENIED, denied
from deepseek_trainer.storage.renaming import PARTIAL, put_new
from deepseek_trainer.storage.streams import Bytes
from deepseek_trainer.storage.trees import remove_tree

_HINTS: Final = {
    errno.ENOSPC: "free space on the volume or enlarge it; let checkpoint.retention keep less",
    errno.EDQUOT: "the quota is used up: raise it, or let checkpoint.retention keep less",
    errno.EROFS: "the volume is mounted read-only: see the node's kernel log",
    errno.EIO: "the storage failed: see the node's kernel log; what was committed before is intact",
}
_UNREADABLE: Final = "see the kernel log of the machine; restore it from a backup"
STORAGE_ERRORS: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE})


class StorageError(TryAgainError):
    """The storage refused a write.  `errno` is the kernel's; `path` is what was being written."""

    def __init__(self, path: Path, error: OSError, needed: int | None = None) -> None:
        self.errno, self.path = error.errno, path
        wanted = "" if needed is None else f", {needed:,} bytes needed"
        super().__init__(
            f"cannot write {path}: {os.strerror(error.errno or 0)}{wanted}, {_free(path):,} bytes free",
            hint=_HINTS.get(error.errno or 0, "what was committed before is intact"),
        )


@contextmanager
def storing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError of the block into a StorageError about `path`.  `needed` is the size to be written [bytes].

    What this user may not write becomes a ConfigError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in DENIED:
            raise denied(path, error) from error
        raise StorageError(path, error, needed) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn an EIO of the block into an UnreadableError about `path`.  Other errors, which may pass, are left alone."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise UnreadableError(f"{path} cannot be read: {os.strerror(errno.EIO)}", hint=_UNREADABLE) from error


class NewFile:
    """A new file as a sink.  At the end of the block it is on the disk; after an exception it is gone.

    Only failures of this file become StorageErrors, not those of the block.
    """

    def __init__(self, path: Path, mode: int, needed: int | None) -> None:
        self._path, self._needed = path, needed
        with self._storing():
            self._file = io.FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")

    def write(self, data: Bytes) -> int:
        with self._storing():
            return self._file.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            with self._storing(), self._file:
                if kind is None:
                    os.fsync(self._file.fileno())
        except StorageError:
            self._path.unlink(missing_ok=True)
            raise
        if kind is not None:
            self._path.unlink(missing_ok=True)

    def _storing(self) -> AbstractContextManager[None]:
        return storing(self._path, self._needed)


def sync(path: Path) -> None:
    """Wait until a file's content, or a directory's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO that somebody put there would hang it
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path, *, ignore_errors: bool = False) -> None:
    """Remove a file, or a directory with all that it holds.  Of a link only the link goes, never what it points to."""
    with suppress(*[OSError] if ignore_errors else []):
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """A path in the same directory that nobody else uses."""
    return path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex}")


def replace_file(path: Path, content: bytes, *, written: Path | None = None) -> None:
    """Give `path` a new content.  After a crash it has the old content or the new one.

    It is written to the new file `written` beside it, by default under a name that nobody else uses.
    """
    with _written_beside(path, content, path, written) as partial:
        partial.replace(path)


def keep_owner(partial: Path, path: Path) -> None:
    """Give `partial` the owner of `path`, if that exists.  The pod must be able to read what root replaces for it.

    A link that somebody puts in the place of `partial` is not followed: root would give away what it leads to.
    """
    if os.geteuid() == 0 and os.path.lexists(path):
        old, new = path.lstat(), partial.lstat()
        if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
            os.chown(partial, old.st_uid, old.st_gid, follow_symlinks=False)


def publish_file(path: Path, content: bytes, *, like: Path | None = None, written: Path | None = None) -> bool:
    """Make `path` with its whole content at once, owned as `like` is; returns False if somebody else was faster.

    Then `path` has the content of another one.  Of several who try at once exactly one gets True.
    """
    with _written_beside(path, content, like or path, written) as partial:
        return put_new(partial, path)


@contextmanager
def _written_beside(path: Path, content: bytes, like: Path, written: Path | None) -> Iterator[Path]:
    partial = written or beside(path)
    with storing(path, len(content)):
        try:
            with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            keep_owner(partial, like)
            yield partial
            sync(path.parent)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)


def _free(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
