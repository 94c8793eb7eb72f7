"""What a disk may hold after a power cut: file operations are recorded, and any part of them is played back.

Without fsync nothing is promised: of a file that was not synced any beginning may be there, or nothing; of a new name,
a rename or a removal that was not synced with its directory, either the old or the new.
"""

import os
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

Content = bytes | None  # None: a directory


@dataclass(frozen=True)
class Operation:
    kind: str  # make, sync, rename, link or remove
    path: Path
    target: Path | None = None  # of a rename or link
    content: Content = None  # of a file, when it was synced; "make": b"" for a file


@dataclass
class Recorder:
    """The operations of this process below `root`, in order."""

    root: Path
    operations: list[Operation] = field(default_factory=list)
    is_on: bool = False

    def heard(self, event: str, arguments: Sequence[object]) -> None:
        operation = HEARD[event](*arguments) if self.is_on and event in HEARD else None
        if operation and operation.path.is_relative_to(self.root):
            self.operations.append(operation)

    def synced(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.is_on = False
        content = None if path.is_dir() else path.read_bytes()
        self.is_on = True
        self.operations.append(Operation("sync", path, content=content))


def _opened(path: object, _mode: object, flags: int, *_: object) -> Operation | None:
    is_new = isinstance(path, str | Path) and flags & os.O_CREAT and flags & os.O_EXCL
    return Operation("make", Path(str(path)), content=b"") if is_new else None


def _two(kind: str) -> object:
    return lambda source, target, *_: Operation(kind, Path(os.fsdecode(source)), Path(os.fsdecode(target)))


HEARD = {
    "open": _opened,
    "os.mkdir": lambda path, *_: Operation("make", Path(os.fsdecode(path))),
    "os.rename": _two("rename"),
    "os.link": _two("link"),
    "os.remove": lambda path, *_: Operation("remove", Path(os.fsdecode(path))),
}


@contextmanager
def recorded(root: Path) -> Iterator[list[Operation]]:
    """The operations of the block."""
    recorder = Recorder(root)
    sys.addaudithook(recorder.heard)
    with mock.patch("os.fsync", recorder.synced):
        recorder.is_on = True
        try:
            yield recorder.operations
        finally:
            recorder.is_on = False


Tree = dict[Path, Content]


def tree_of(root: Path) -> Tree:
    return {path: None if path.is_dir() else path.read_bytes() for path in sorted(root.rglob("*"))}


def after_a_power_cut(before: Tree, operations: Sequence[Operation], luck: random.Random, kept: float) -> Tree:
    """One of the trees that may be found: each operation that was not synced is there with probability `kept`."""
    tree, finals = dict(before), {op.path: op.content for op in operations if op.kind == "sync"}
    for number, operation in enumerate(operations):
        is_durable = any(
            later.kind == "sync" and later.path == _directory(operation) for later in operations[number + 1 :]
        )
        if operation.kind == "sync":
            if operation.path in tree and operation.content is not None:
                tree[operation.path] = operation.content
        elif is_durable or luck.random() < kept:
            _play(tree, operation, finals, luck)
    return tree


def _directory(operation: Operation) -> Path:
    return (operation.target or operation.path).parent


def _play(tree: Tree, operation: Operation, finals: dict[Path, Content], luck: random.Random) -> None:
    path, target = operation.path, operation.target
    if operation.kind == "make":
        whole = finals.get(path) or b""
        tree[path] = None if operation.content is None else whole[: luck.choice([0, len(whole) // 2, len(whole)])]
    elif operation.kind == "remove":
        tree.pop(path, None)
    elif target is not None and path in tree:
        moved = {p: c for p, c in tree.items() if p == path or p.is_relative_to(path)}
        if operation.kind == "rename":
            for gone in [p for p in tree if p in moved or p == target or p.is_relative_to(target)]:
                del tree[gone]
        tree.update({target / p.relative_to(path): content for p, content in moved.items()})


def laid_out(tree: Tree, root: Path, place: Path) -> None:
    """Make the tree, which was below `root`, below `place`."""
    for path, content in sorted(tree.items()):
        there = place / path.relative_to(root)
        if not all(parent in tree or parent == root for parent in path.parents if parent.is_relative_to(root)):
            continue  # its directory's name was lost
        if content is None:
            there.mkdir(parents=True, exist_ok=True)
        else:
            there.write_bytes(content)
            there.chmod(0o600)
