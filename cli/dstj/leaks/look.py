"""Looks at everything in a directory: sealed, in the clear on purpose, or a leak."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import plainly
from deepseek_trainer.storage.opening import opened
from deepseek_trainer.storage.segments import HEADER_BYTES
from deepseek_trainer.storage.streams import Advance
from dstj.leaks import sealed
from dstj.leaks.needles import Needle, Search
from dstj.leaks.places import Allowed, allowed
from dstj.leaks.signs import EVENTS, HEAD_BYTES, MARKS, Evenness, kind_of, magic_in_random
from dstj.leaks.tree import DIRECTORY, FILE, LINK, Entry

CHUNK_BYTES: Final = 1 << 20
_MAX_PATH: Final = 1024  # [characters] of a path that is shown
_MAX_LINE: Final = 1 << 16  # [bytes] of an event
_EVENT: Final = b'{"event": "'
_UNKNOWN: Final = "bytes of no known format"

Sign = tuple[int | None, str, str]  # where in the file; what; why it is a leak


@dataclass(frozen=True, slots=True)
class Finding:
    """A leak.  It tells no private byte, not even one in a file's name."""

    path: str
    offset: int | None  # None: not of a certain byte
    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Place:
    """A directory to look at, and what may be in the clear there."""

    root: Path
    files: Sequence[Allowed]
    others: Sequence[Allowed] = ()  # links, and directories that cannot be read
    vaults: sealed.Vaults = field(default_factory=dict)  # of a work volume whose key is known
    but: str = ""  # name of a directory in it to leave out


@dataclass(slots=True)
class Total:
    files: int = 0
    size: int = 0  # [bytes]

    def add(self, size: int) -> None:
        self.files, self.size = self.files + 1, self.size + size


class Look:
    """A look for the same needles at any number of places.  It counts what it has seen."""

    def __init__(self, needles: Sequence[Needle]) -> None:
        self.sealed, self.authentic = Total(), Total()
        self.on_purpose: dict[tuple[Path, Allowed], Total] = {}
        self._private, self._all = needles, [*needles, *MARKS]

    def at(self, place: Place, entry: Entry, advance: Advance) -> Iterator[Finding]:
        """The leaks of one entry of a place."""
        path = self._masked(entry.path)
        try:
            for offset, what, why in self._signs(place, entry, advance):
                yield Finding(path, offset, what, why)
        except FileNotFoundError:  # a running job has removed it
            return
        except ConfigError:
            yield Finding(path, None, "a file that was not read", "it became a link, or no file, under our eyes")
        except OSError as error:
            yield Finding(path, None, "a file that was not read", (error.strerror or str(error.errno)).lower())

    def _signs(self, place: Place, entry: Entry, advance: Advance) -> Iterator[Sign]:
        yield from self._in_name(Path(entry.name).name, "in its name")
        if entry.kind == LINK:
            yield from self._in_name(str(entry.path.readlink()), "in where it leads")
        if entry.kind == FILE and sealed.claims_to_be_sealed(entry.name):
            yield from self._of_sealed(place, entry, advance)
        elif entry.kind == FILE:
            yield from self._of_clear(place, entry, advance)
        elif rule := allowed(entry.name, place.others):
            self._on_purpose(place, rule, 0)
        elif entry.kind != DIRECTORY:
            yield None, f"a {entry.kind}", "no job makes one there, and nothing was read through it"

    def _of_clear(self, place: Place, entry: Entry, advance: Advance) -> Iterator[Sign]:
        rule = allowed(entry.name, place.files)
        if rule:
            self._on_purpose(place, rule, entry.size)
        with opened(entry.path, below=place.root) as file:
            head = _head(file)
            if head and rule is None:
                yield 0, kind_of(head) or _UNKNOWN, "a sealed job has no file in the clear there"
            elif head and rule and not rule.may_be(kind := kind_of(head)):
                yield 0, kind or _UNKNOWN, f"there ought to be: {', '.join(sorted(rule.kinds))}"
            elif rule and rule.kinds == {EVENTS}:
                yield from _stray_line(file)
            yield from _found(Search(self._all), file, advance)

    def _of_sealed(self, place: Place, entry: Entry, advance: Advance) -> Iterator[Sign]:
        self.sealed.add(entry.size)
        is_whole = not sealed.is_being_written(entry.name)
        if place.vaults and is_whole:
            with opened(entry.path, below=place.root):
                is_authentic = sealed.authenticates(place.vaults, place.root, entry.name, advance)
            if is_authentic:  # nobody without the key wrote a byte of it
                self.authentic.add(entry.size)
                return
            yield None, "a sealed file that does not authenticate", "it was changed, moved, or sealed by another key"
        with opened(entry.path, below=place.root) as file:
            yield from self._of_unproven(file, entry, is_whole, advance)

    def _of_unproven(self, file: BinaryIO, entry: Entry, is_whole: bool, advance: Advance) -> Iterator[Sign]:
        """Of a file that claims to be sealed, for whose bytes no key vouches."""
        head = _head(file)
        if is_whole and (wrong := sealed.misfit(head, entry.size)):
            yield 0, ": ".join(filter(None, (wrong, kind_of(head)))), "its name says that it is sealed"
        elif kind := magic_in_random(head) or magic_in_random(head[HEADER_BYTES:]):
            yield 0, kind, "its name says that it is sealed"
        rare = [needle for needle in self._all if needle.is_rare]
        evenness = Evenness()
        yield from _found(Search(rare), file, advance, evenness)
        if evenness.count:
            yield evenness.first, f"{evenness.count} KiB that are not random", "sealed bytes look random"

    def _in_name(self, name: str, where: str) -> Iterator[Sign]:
        yield from ((None, needle.what, where) for _, needle in Search(self._private).feed(os.fsencode(name)))

    def _masked(self, path: Path) -> str:
        """A path for people, with what is private in it left out."""
        content = os.fsencode(path)
        for needle in self._private:
            content = content.replace(needle.content, b"***")
        return plainly(os.fsdecode(content), _MAX_PATH)

    def _on_purpose(self, place: Place, rule: Allowed, size: int) -> None:
        self.on_purpose.setdefault((place.root, rule), Total()).add(size)


def _head(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(HEAD_BYTES)


def _found(search: Search, file: BinaryIO, advance: Advance, evenness: Evenness | None = None) -> Iterator[Sign]:
    """The needles in a file, which is read once, a piece at a time."""
    file.seek(0)
    while piece := file.read(CHUNK_BYTES):
        yield from ((offset, needle.what, "in the clear") for offset, needle in search.feed(piece))
        if evenness:
            evenness.feed(piece)
        advance(len(piece))


def _stray_line(file: BinaryIO) -> Iterator[Sign]:
    """The first line that is no event.  A crash may have cut the last one."""
    file.seek(0)
    while line := file.readline(_MAX_LINE):
        is_endless = len(line) == _MAX_LINE and not line.endswith(b"\n")
        if is_endless or line[: len(_EVENT)] != _EVENT[: len(line)]:
            yield file.tell() - len(line), "a line that is no event", "there ought to be events of the run alone"
            return
