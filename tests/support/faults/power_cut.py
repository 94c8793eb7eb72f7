"""What a disk may hold after a power cut: file operations are recorded, and any part of them is played back.

Without fsync nothing is promised: of bytes that were not synced any part may be there, with holes where others are
missing; of a new name, a rename or a removal that was not synced with its directory, either the old or the new, in any
combination.  Files and directories are numbered, because a directory that is renamed stays what it was: what happens in
it may reach the disk when its new name does not.
"""

import io
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

Tree = dict[Path, bytes | None]  # below a root; None: a directory
ROOT = 0


class Write(NamedTuple):
    """Bytes that went to a file."""

    file: int
    offset: int
    data: bytes


class Sync(NamedTuple):
    """What went to a file, or to a directory's names, before this is on the disk."""

    node: int


class Names(NamedTuple):
    """Names that change together: the directory, the name, and what it is from now on (None: nothing)."""

    changes: tuple[tuple[int, str, int | None], ...]


Operation = Write | Sync | Names


@dataclass
class Disk:
    """Files and directories by number."""

    files: dict[int, bytes] = field(default_factory=dict)
    directories: dict[int, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, root: Path) -> "Disk":
        disk = cls()
        disk._add(root, ROOT)
        return disk

    def copy(self) -> "Disk":
        return Disk(dict(self.files), {number: dict(names) for number, names in self.directories.items()})

    def number(self, path: Path) -> int | None:
        """Of the path below the root."""
        number: int | None = ROOT
        for name in path.parts:
            number = None if number is None else self.directories.get(number, {}).get(name)
        return number

    def made(self, content: bytes | None) -> int:
        """A new file, or a directory, that has no name yet."""
        number = len(self.files) + len(self.directories)
        if content is None:
            self.directories[number] = {}
        else:
            self.files[number] = content
        return number

    def rename(self, changes: Names) -> None:
        for directory, name, number in changes.changes:
            self.directories[directory].pop(name, None)
            if number is not None:
                self.directories[directory][name] = number

    def write(self, file: int, offset: int, data: bytes) -> None:
        old = self.files[file]
        self.files[file] = old[:offset].ljust(offset, b"\0") + data + old[offset + len(data) :]

    def tree(self, number: int = ROOT, path: Path = Path()) -> Tree:
        """What a name leads to."""
        found: Tree = {}
        for name, child in self.directories[number].items():
            if child in self.files:
                found[path / name] = self.files[child]
            else:
                found |= {path / name: None} | self.tree(child, path / name)
        return found

    def _add(self, path: Path, number: int) -> None:
        self.directories[number] = {}
        for child in sorted(path.iterdir()):
            made = self.made(None if child.is_dir() else child.read_bytes())
            self.directories[number][child.name] = made
            if child.is_dir():
                self._add(child, made)


class Recording:
    """The operations of this process below `root`, in order, all threads'."""

    def __init__(self, root: Path) -> None:
        self.root, self.before, self.operations = root, Disk.of(root), list[Operation]()
        self._now, self._lock = self.before.copy(), threading.RLock()

    def heard(self, event: str, arguments: Sequence[Any]) -> None:
        """The interpreter tells before it asks the kernel, which refuses what makes no sense here either."""
        if event in HEARD:
            with self._lock:
                HEARD[event](self, *arguments)

    def written(self, descriptor: int, offset: int, data: bytes) -> None:
        with self._lock:
            if (file := self._open(descriptor)) is not None:
                self.operations.append(Write(file, offset, data))

    def synced(self, descriptor: int) -> None:
        with self._lock:
            if (node := self._open(descriptor)) is not None:
                self.operations.append(Sync(node))

    def opened(self, path: Any, _mode: object, flags: int) -> None:
        if isinstance(path, str | Path) and flags & os.O_CREAT and flags & os.O_EXCL:
            self._name(Path(path), b"")

    def made(self, path: Any, _mode: object, _directory: int) -> None:
        self._name(Path(os.fsdecode(path)), None)

    def renamed(self, source: Any, target: Any, *_: object) -> None:
        old, new = self._place(source), self._place(target)
        if old and new and (number := self._number(old)) is not None:
            self._change((*new, number), (*old, None))

    def linked(self, source: Any, target: Any, *_: object) -> None:
        old, new = self._place(source), self._place(target)
        if old and new and self._number(new) is None:
            self._change((*new, self._number(old)))

    def removed(self, path: Any, directory: int = -1) -> None:
        above = Path(f"/proc/self/fd/{directory}").readlink() if directory >= 0 else Path()
        place = self._place(above / os.fsdecode(path))
        if place and self._number(place) is not None:
            self._change((*place, None))

    def _name(self, path: Path, content: bytes | None) -> None:
        place = self._place(path)
        if place and self._number(place) is None:
            number = self._now.made(content)
            # There from the beginning, for a disk that is played back; without a name it cannot be found.
            self.before.made(content)
            self._change((*place, number))

    def _change(self, *changes: tuple[int, str, int | None]) -> None:
        self.operations.append(Names(changes))
        self._now.rename(Names(changes))

    def _open(self, descriptor: int) -> int | None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        return self._now.number(path.relative_to(self.root)) if path.is_relative_to(self.root) else None

    def _place(self, path: Any) -> tuple[int, str] | None:
        """The directory and the name, below the root."""
        path = Path(os.fsdecode(path))
        if path == self.root or not path.is_relative_to(self.root):
            return None
        directory = self._now.number(path.parent.relative_to(self.root))
        return None if directory is None else (directory, path.name)

    def _number(self, place: tuple[int, str]) -> int | None:
        return self._now.directories[place[0]].get(place[1])


HEARD: Mapping[str, Callable[..., None]] = {
    "open": Recording.opened,
    "os.mkdir": Recording.made,
    "os.rename": Recording.renamed,
    "os.link": Recording.linked,
    "os.remove": Recording.removed,
    "os.rmdir": Recording.removed,
}


@contextmanager
def recorded(root: Path) -> Iterator[Recording]:
    """The operations of the block; fails where it has missed any."""
    recording, is_on = Recording(root), True

    class HeardFile(io.FileIO):
        def write(self, data: Any) -> int:
            recording.written(self.fileno(), self.tell(), bytes(data))
            return super().write(data)

    def fdopen(descriptor: int, mode: str = "r", *arguments: Any, **more: Any) -> Any:
        if mode == "wb":
            return io.BufferedWriter(HeardFile(descriptor, mode))
        return open(descriptor, mode, *arguments, **more)

    sys.addaudithook(lambda event, arguments: recording.heard(event, arguments) if is_on else None)
    with mock.patch("os.fsync", recording.synced), mock.patch("io.FileIO", HeardFile), mock.patch("os.fdopen", fdopen):
        try:
            yield recording
        finally:
            is_on = False
    assert after_a_power_cut(recording, None, random.Random(0), kept=1.0) == Disk.of(root).tree()


def after_a_power_cut(recording: Recording, end: int | None, luck: random.Random, kept: float) -> Tree:
    """One of the trees that may be found after `end` operations.

    What was not synced is there as a whole with probability `kept`.
    """
    disk, operations = recording.before.copy(), recording.operations[:end]
    last = {node: number for number, operation in enumerate(operations) for node in synced_by(operation)}
    for number, operation in enumerate(operations):
        is_durable = all(last.get(node, -1) > number for node in touched_by(operation))
        if isinstance(operation, Names) and (is_durable or luck.random() < kept):
            disk.rename(operation)
        elif isinstance(operation, Write):
            whole = is_durable or luck.random() < kept
            for offset, data in [(operation.offset, operation.data)] if whole else torn(operation, luck):
                disk.write(operation.file, offset, data)
    return disk.tree()


def synced_by(operation: Operation) -> list[int]:
    return [operation.node] if isinstance(operation, Sync) else []


def touched_by(operation: Operation) -> list[int]:
    if isinstance(operation, Names):
        return [directory for directory, _, _ in operation.changes]
    return [operation.file] if isinstance(operation, Write) else []


def torn(write: Write, luck: random.Random) -> list[tuple[int, bytes]]:
    """Nothing of it, a beginning, an end after a hole, or all around a hole."""
    first, second = sorted(luck.randint(0, len(write.data)) for _ in range(2))
    beginning = (write.offset, write.data[:first])
    ending = (write.offset + second, write.data[second:])
    return luck.choice([[], [beginning], [ending], [beginning, ending]])


def laid_out(tree: Tree, place: Path) -> None:
    """Make the tree below `place`."""
    for path, content in sorted(tree.items()):
        if content is None:
            (place / path).mkdir()
        else:
            (place / path).write_bytes(content)
            (place / path).chmod(0o600)
