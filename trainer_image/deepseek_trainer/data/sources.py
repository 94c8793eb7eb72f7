"""The job's data as records: the files of a claim, in name order.

Errors name file and line and the fields of a record, never its content.
"""

import difflib
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import compress, islice, repeat
from pathlib import Path
from typing import Any, Final, Generic, NoReturn, Self

from deepseek_trainer.contract.data import BadRecord, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import named
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.fields import some
from deepseek_trainer.data.formats.bounds import legible, readable, refuse
from deepseek_trainer.data.formats.readers import ALIAS, TEXT, conversion, describes
from deepseek_trainer.data.formats.unpacking import PACKED, suffix_of
from deepseek_trainer.data.reading import Load, R, Reader, Reading, Record
from deepseek_trainer.storage.opening import opened

log = logging.getLogger(__name__)

Skipped = Callable[[DataError], None]  # called with the error of each bad record that is left out
EVERY: Final[Iterable[bool]] = repeat(True)


def unheard(_: DataError) -> None:
    """Ignores bad records: for whoever reads the records again, after they were reported once."""


@dataclass(frozen=True, slots=True)
class Source(Generic[R]):
    """The files of one `data.train` or `data.validation`, found and safe to open."""

    root: Path
    files: tuple[Path, ...]
    spec: DataSpec
    reading: Reading[R]
    is_private: bool = False  # errors say where a bad record stands, and nothing that stands there
    most: int | None = None  # entries that are read; None: all

    @classmethod
    def find(
        cls,
        place: VolumePath,
        spec: DataSpec,
        paths: Paths,
        reading: Reading[R],
        *,
        is_private: bool = False,
        most: int | None = None,
    ) -> Self:
        """Raises DataError if claim, path or readable files are missing, or a link leads out of the claim."""
        claim = paths.claim(place.claim_name)
        if not claim.is_dir():
            raise DataError(
                f"no volume {named(place.claim_name)} at {claim}{_beside(claim)}",
                hint="check data.*.claimName in the job file",
            )
        root = claim / place.path
        with readable(str(root), way_out=""):
            _refuse_link_out(root, claim, place)
            found = _files(root, lambda each: _refuse_link_out(each, claim, place))
        if found is None:
            raise DataError(
                f"no {named(place.path)} in volume {named(place.claim_name)} ({root}){_beside(root)}",
                hint="check data.*.path in the job file",
            )
        files = _chosen(root, found, spec, reading)
        for file in files:
            _refuse_link_out(file, claim, place)
        return cls(root if root.is_dir() else root.parent, files, spec, reading, is_private, most)

    def records(self, skipped: Skipped = unheard, wanted: Iterable[bool] = EVERY) -> Iterator[R]:
        """All records, or those of the `wanted` entries, files in name order.  Skips and raises as `numbered`."""
        return (record for _, record in self.numbered(skipped, wanted))

    def numbered(self, skipped: Skipped = unheard, wanted: Iterable[bool] = EVERY) -> Iterator[tuple[int, R]]:
        """Each record with the number of its entry.  Blank lines, empty texts and bad records are entries, too.

        Raises DataError at the first record or file that is bad.  With onBadRecord Skip it calls `skipped` for each of
        them instead, and raises DataError at the end if no record was good.  Only `wanted` entries are looked at.
        """
        first: DataError | None = None
        bad = good = 0
        for i, load in compress(enumerate(islice(self._loads(), self.most)), wanted):
            try:
                found = load()
            except DataError as bare:
                error = bare if self.is_private else bare.in_full()
                if self.spec.on_bad_record is BadRecord.FAIL:
                    raise error from None
                skipped(error)
                first, bad = first or error, bad + 1
                continue
            if found is not None:
                good += 1
                yield i, found
        if first is not None and not good:
            raise DataError(
                f"no record is left: {bad} were bad and skipped, the first: {first.problem}", hint=first.hint
            )

    def digest(self) -> str:
        """SHA-256 over the files' names and contents, in order.  Of a file that is skipped, only the name counts."""
        total = hashlib.sha256()
        for file in self.files:
            total.update(f"{self._digest_of(file)}  {self.name_of(file)}\n".encode())
        return total.hexdigest()

    def _digest_of(self, file: Path) -> str:
        try:
            with readable(self.name_of(file)), opened(file, refusal=DataError) as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest()  # type: ignore[arg-type]  # it has `readinto`
        except DataError:
            if self.spec.on_bad_record is BadRecord.FAIL:
                raise
            return "not readable"

    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files if file.exists())

    def name_of(self, file: Path) -> str:
        return file.relative_to(self.root).as_posix()

    def _loads(self) -> Iterator[Callable[[], R | None]]:
        """Functions that return a record each, or None for a blank one.  One raises where a file cannot be read on."""
        for file in self.files:
            name = self.name_of(file)
            try:
                with legible(name), readable(name):
                    for line, load in self._reader(file)(file, name, self.reading.columns):
                        yield partial(_loaded, load, name, line, self.reading)
            except DataError as error:
                yield partial(refuse, error)

    def _reader(self, file: Path) -> Reader:
        """Raises DataError where the task reads no such files."""
        suffix = suffix_of(file)
        if suffix not in self.reading.readers:
            raise _unread([self.name_of(file)], self.reading)
        return self.reading.readers[suffix]


@dataclass(frozen=True, slots=True)
class Split:
    """Which records of `data.train` are held out: those whose key is below `threshold`."""

    threshold: int

    @classmethod
    def of(cls, records: Iterable[Record], fraction: float) -> Self:
        """Hold out about `fraction` of the records, at least one, and never all.

        Equal records are never on both sides.  Raises DataError unless at least two records differ.
        """
        threshold = int(fraction * 2**64)
        low, high = 2**64, -1
        for record in records:
            key = record.key()
            low, high = min(low, key), max(high, key)
        if high <= low:
            count = "no record" if high < 0 else "only one record, or copies of it"
            raise DataError(
                f"data.train has {count}: holding some out for validation takes two different ones",
                hint="add records, or give data.validation",
            )
        return cls(min(max(threshold, low + 1), high))

    def holds_out(self, record: Record) -> bool:
        return record.key() < self.threshold


def _files(root: Path, check: Callable[[Path], None]) -> list[Path] | None:
    """What lies at or below `root`, links to nowhere and FIFOs among them; None if `root` does not exist.

    `check` is called with `root` and each link to a directory before it is entered: no other way leads out.
    """
    if root.is_dir():
        return sorted(_visible_files(root, check))
    return [root] if root.exists() else None


def _visible_files(root: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """A directory to which several links lead is entered once: they could lead round and round."""
    waiting, known = deque([root]), set[tuple[int, int]]()
    while waiting:
        directory = waiting.popleft()
        if directory == root or directory.is_symlink():
            check(directory)
        with readable(str(directory), way_out=""):
            status = directory.stat()
            if (status.st_dev, status.st_ino) in known:
                continue
            known.add((status.st_dev, status.st_ino))
            entries = sorted(entry for entry in directory.iterdir() if not _is_hidden(entry))
            directories = [entry for entry in entries if entry.is_dir()]
        waiting += sorted(directories, key=Path.is_symlink)
        # What is no file is refused when it is opened: to pass it over would be to train on less.
        yield from (entry for entry in entries if entry not in directories)


def _is_hidden(entry: Path) -> bool:
    return entry.name.startswith(".") or entry.name == "lost+found"


def _chosen(root: Path, found: list[Path], spec: DataSpec, reading: Reading[Any]) -> tuple[Path, ...]:
    """All that lies there but files that describe data, which the log names.

    Raises DataError where no file, or one of several, is of no format that the task reads.  With onBadRecord Skip
    such a file beside others is a bad record.
    """
    is_read = {file: suffix_of(file) in reading.readers and not _is_description(file) for file in found}
    described = [file for file in found if not is_read[file] and describes(file)]
    others = [file for file in found if not is_read[file] and file not in described]
    if not any(is_read.values()):
        _refuse_files(root, found, spec, reading)
    if others and spec.on_bad_record is BadRecord.FAIL:
        raise _unread([file.relative_to(root).as_posix() for file in others], reading)
    if described:
        log.info("not read, as they describe data: %s", some([file.name for file in described]))
    chosen = [file for file in found if file not in described]
    _refuse_twice(chosen)
    for file in chosen:
        _refuse_no_text(file)
    return tuple(chosen)


def _is_description(file: Path) -> bool:
    """A text is one record more where a job reads texts, whatever its name."""
    return describes(file) and not suffix_of(file).startswith(TEXT)


def _unread(names: list[str], reading: Reading[Any]) -> DataError:
    """The error for files that the task does not read: to pass them over would be to train on less."""
    return DataError(
        f"{some(names)} cannot be read: of files this job reads {_suffixes(reading)}",
        hint=f"{conversion(names) or reading.way_out([Path(name) for name in names])}; take away what is not to be "
        "learned, or let data.*.path name what is",
    )


def _refuse_no_text(file: Path) -> None:
    """Raise DataError for a name that no digest, message or manifest could hold."""
    try:
        str(file).encode()
    except UnicodeEncodeError:
        raise DataError(f"{named(file.name)} is a file whose name is not UTF-8", hint="rename it") from None


def _refuse_twice(files: list[Path]) -> None:
    """Raise DataError for a file that lies there packed as well: it would be learned twice."""
    known = dict[Path, Path]()
    for file in files:
        plain = file.with_suffix("") if file.suffix.lower() in PACKED else file
        if (other := known.setdefault(plain, file)) is not file:
            raise DataError(
                f"{other.name} and {file.name} are one file, packed in two ways: its records would count twice",
                hint="take one of them away",
            )


def _suffixes(reading: Reading[Any]) -> str:
    plain = [suffix for suffix in reading.readers if not suffix.endswith(PACKED) and suffix != ALIAS]
    *others, last = reading.advertised or plain
    return f"{', '.join(others)} or {last}"


def _refuse_files(root: Path, found: list[Path], spec: DataSpec, reading: Reading[Any]) -> NoReturn:
    there = f"; found {some([file.name for file in found])}" if found else ", it is empty"
    raise DataError(
        f"no {_suffixes(reading)} file for data.format {spec.format} at {root}{there}", hint=reading.way_out(found)
    )


def _refuse_link_out(file: Path, claim: Path, place: VolumePath) -> None:
    real = Path(os.path.realpath(file))  # unlike `resolve`, it does not fail for links in a circle
    if not real.is_relative_to(claim.resolve()):
        raise DataError(
            f"{file} is a link that leads out of volume {named(place.claim_name)}", hint="copy the file there"
        )


def _beside(path: Path) -> str:
    """For a message that `path` is missing: what is there in its place, and the nearest name."""
    parent = next((parent for parent in path.parents if parent.is_dir()), None)
    if parent is None:
        return ""
    names = [entry.name for entry in sorted(parent.iterdir()) if not entry.name.startswith(".")]
    if not names:
        return f"; {parent} is empty"
    near = difflib.get_close_matches(path.relative_to(parent).parts[0], names, n=1)
    return f"; {parent} has {some(names)}" + (f", did you mean {named(near[0])}" if near else "")


def _loaded(load: Load, name: str, line: int, reading: Reading[R]) -> R | None:
    try:
        value = load()
        return None if value is None else reading.record(value, name, line)
    except Exception:
        with legible(f"{name}:{line}"):  # entered here alone: for every good record it would take its time
            raise
