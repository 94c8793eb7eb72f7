"""Directories of any depth: on a volume of others they may be nested deeper than Python's stack, or a path is long."""

import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def files_in(directory: Path) -> list[Path]:
    """All files below a directory, in order, links to files among them.  Links to directories are not followed."""
    return sorted(path for path in entries_in(directory) if path.is_file())


def entries_in(directory: Path) -> Iterator[Path]:
    """All that lies below a directory, and each directory before what it holds.  Links are not followed."""
    waiting = [directory]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                yield Path(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def remove_tree(directory: Path) -> None:
    """Remove a directory with all that it holds.  Of a link only the link goes.  Raises OSError.

    Each directory below is emptied in the uppermost one: what it holds is moved there first, so that no path and no
    stack grows with the depth.
    """
    top = os.open(directory, _DIRECTORY)
    try:
        while directories := _without_files(top):
            for name in directories:
                _move_up(name, top)
    finally:
        os.close(top)
    directory.rmdir()


def _without_files(directory: int) -> list[str]:
    """Remove all but directories; returns their names."""
    found = []
    for name in os.listdir(directory):
        with suppress(FileNotFoundError):  # somebody else removes it, too
            if stat.S_ISDIR(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode):
                found.append(name)
            else:
                os.unlink(name, dir_fd=directory)
    return found


def _move_up(name: str, top: int) -> None:
    inner = os.open(name, _DIRECTORY, dir_fd=top)
    try:
        for each in _without_files(inner):
            os.rename(each, uuid.uuid4().hex, src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)
