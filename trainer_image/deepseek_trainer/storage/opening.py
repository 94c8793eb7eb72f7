"""The one way in which files that others can write are opened: claims, volumes, keys.

Whoever can write to a volume can put a FIFO there, which hangs its reader, a device, a link to a file outside, or a
file without end.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final

from deepseek_trainer.contract.errors import ConfigError, JobError
from deepseek_trainer.contract.foreign import MAX_SHOWN, shown

_KINDS: Final[Mapping[int, str]] = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
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
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse(descriptor, path, below, max_bytes, refusal)
        return os.fdopen(descriptor, "rb", buffering)
    except BaseException:
        os.close(descriptor)
        raise


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
        raise refusal(f"{shown(str(path), _MAX_PATH)} is {kind}", hint="put a regular file in its place")
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


def _place(descriptor: int) -> Path:
    """Where the open file lies, whatever links led to it."""
    return Path(f"/proc/self/fd/{descriptor}").readlink()
