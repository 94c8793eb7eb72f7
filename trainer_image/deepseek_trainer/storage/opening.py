"""The one way in which files that others can write are opened: claims, volumes, keys.

Whoever can write to a volume can put a FIFO there, which hangs its reader, a device, a link to a file outside, or a
file without end.
"""

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final, TextIO

from deepseek_trainer.contract.errors import ConfigError, IntegrityError, JobError
from deepseek_trainer.contract.foreign import MAX_SHOWN, shown

_KINDS: Final[Mapping[int, str]] = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_READING: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
_APPENDING: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
_NO_FILE: Final = "put a regular file in its place"
_NO_LINKS: Final = "put what it leads to in its place: on this volume nothing of the job is a link"
_MAX_PATH: Final = 4 * MAX_SHOWN  # [characters] of a path in a message


def opened(
    path: Path,
    *,
    below: Path | None = None,
    max_bytes: int | None = None,
    refusal: type[JobError] = ConfigError,
    buffering: int = -1,
) -> BinaryIO:
    """A regular file, open for reading.

    Raises `refusal` where it is something else, where links lead out of the directory `below`, or where it is larger
    than `max_bytes`; OSError as `open` does.
    """
    descriptor = os.open(path, _READING)
    with _closed_if_refused(descriptor):
        _refuse(descriptor, path, below, max_bytes, refusal)
        return os.fdopen(descriptor, "rb", buffering)


def opened_own(path: Path, *, max_bytes: int | None = None, buffering: int = -1) -> BinaryIO:
    """A file that one of our programs wrote, open for reading.

    They make no links, so neither the file nor its directory may be one.  Raises IntegrityError where it is, and as
    `opened` does; OSError as `open` does.
    """
    with _directory(path.parent, IntegrityError) as directory, _no_link(path, IntegrityError):
        descriptor = os.open(path.name, _READING | os.O_NOFOLLOW, dir_fd=directory)
    with _closed_if_refused(descriptor):
        _refuse(descriptor, path, None, max_bytes, IntegrityError)
        return os.fdopen(descriptor, "rb", buffering)


def opened_to_append(path: Path) -> TextIO:
    """A file of our own on a volume, open to write lines at its end; it is made if it is not there.

    Raises ConfigError where it is no regular file, or where it or its directory is a link: what is written would land
    elsewhere.  OSError as `open` does.
    """
    with _directory(path.parent, ConfigError) as directory, _no_link(path, ConfigError):
        descriptor = os.open(path.name, _APPENDING | os.O_NOFOLLOW, 0o666, dir_fd=directory)
    with _closed_if_refused(descriptor):
        _refuse(descriptor, path, None, None, ConfigError)
        return os.fdopen(descriptor, "a", 1, encoding="utf-8")


def content_of(
    path: Path, *, max_bytes: int, below: Path | None = None, refusal: type[JobError] = ConfigError
) -> bytes:
    """All bytes of a regular file.  Raises what `opened` raises."""
    with opened(path, below=below, max_bytes=max_bytes, refusal=refusal) as file:
        return file.read(max_bytes)


def _refuse(descriptor: int, path: Path, below: Path | None, max_bytes: int | None, refusal: type[JobError]) -> None:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise refusal(f"{shown(str(path), _MAX_PATH)} is {kind}", hint=_NO_FILE)
    if below is not None and not _place(descriptor).is_relative_to(below.resolve()):
        raise refusal(
            f"{shown(str(path), _MAX_PATH)} is a link to a file outside of {below}",
            hint="copy the file to where the link is",
        )
    if max_bytes is not None and status.st_size > max_bytes:
        raise refusal(
            f"{shown(str(path), _MAX_PATH)} has {status.st_size:,} bytes, at most {max_bytes:,} are read",
            hint="see whether it is the file that it should be",
        )


@contextmanager
def _closed_if_refused(descriptor: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def _directory(path: Path, refusal: type[JobError]) -> Iterator[int]:
    """A descriptor of a directory that is no link."""
    with _no_link(path, refusal):
        descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _no_link(path: Path, refusal: type[JobError]) -> Iterator[None]:
    """Say what the kernel's answer means to an open that follows no link and waits for nobody."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR) and path.is_symlink():
            raise refusal(f"{shown(str(path), _MAX_PATH)} is a link", hint=_NO_LINKS) from error
        if error.errno == errno.ENXIO:
            raise refusal(f"{shown(str(path), _MAX_PATH)} is a FIFO", hint=_NO_FILE) from error
        error.filename = str(path)
        raise


def _place(descriptor: int) -> Path:
    """Where the open file lies, whatever links led to it."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()
