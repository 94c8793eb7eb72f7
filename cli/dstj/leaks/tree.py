"""Lists what lies in a directory.  It follows no link and opens no file."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FILE: Final = "file"
LINK: Final = "link"
DIRECTORY: Final = "directory"
_KINDS: Final = {
    stat.S_IFREG: FILE,
    stat.S_IFLNK: LINK,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A thing in a directory."""

    root: Path
    name: str  # its path as seen from `root`; "." if it is `root` itself
    kind: str  # FILE, LINK, DIRECTORY, or what else it is
    size: int  # [bytes]

    @property
    def path(self) -> Path:
        return self.root if self.name == "." else self.root / self.name


def entries(root: Path, but: str = "") -> Iterator[Entry]:
    """`root` and everything below it, without what is called `but` directly in it.

    A directory that cannot be listed is an entry, whose kind says so.
    """
    waiting = ["."]
    while waiting:
        name = waiting.pop()
        try:
            status = (root / name).lstat() if name != "." else root.stat()
            entry = Entry(root, name, _KINDS.get(stat.S_IFMT(status.st_mode), "device"), status.st_size)
            yield entry
            if entry.kind == DIRECTORY:
                below = sorted((each.name for each in entry.path.iterdir() if each != root / but), reverse=True)
                waiting += [each if name == "." else f"{name}/{each}" for each in below]
        except FileNotFoundError:  # gone meanwhile
            continue
        except OSError as error:
            yield Entry(root, name, f"place that cannot be read ({(error.strerror or '').lower()})", 0)
