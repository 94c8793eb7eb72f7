"""The one way in which files of data, models and results reach the disk and come back: sealed, or in the clear.

Callers name files without regard to sealing.  On the disk a sealed file has `.sealed` after its name.  A vault that
seals never reads a file that is not sealed.  Each sealed file is bound to its job, purpose, directory, step, rank and
name (`associated_data`), so that it does not open anywhere else.

    vault = Vault("lab/demo", Purpose.DATA, keys)
    vault.write(directory / "tokens.bin", array)       # -> tokens.bin.sealed, on the disk when write returns
    content = vault.read(directory / "tokens.bin")     # -> bytearray; no plaintext touches the disk
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.foreign import parsed, shown
from deepseek_trainer.storage.cleartext import ClearReader, ClearWriter
from deepseek_trainer.storage.digests import ContentDigest
from deepseek_trainer.storage.durable import NewFile, beside, keep_owner, reading, storing, sync
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.key_directory import keks_at
from deepseek_trainer.storage.keyring import KEYRING, owner_of
from deepseek_trainer.storage.renaming import PARTIAL
from deepseek_trainer.storage.sealing import SealedWriter
from deepseek_trainer.storage.streams import Advance, Bytes, Reader, Sink, unwatched
from deepseek_trainer.storage.unsealing import SealedReader

T = TypeVar("T")

SUFFIX: Final = ".sealed"


class Purpose(StrEnum):
    """What a file is for.  A sealed file is bound to it."""

    DATA = "data"
    CHECKPOINT = "checkpoint"
    EXPORT = "export"


@dataclass(frozen=True, slots=True)
class Context:
    """Where a file of a checkpoint belongs.  Data and results need none: the name of their directory says as much."""

    step: int | None = None
    rank: int | None = None


@dataclass(frozen=True, slots=True)
class FileRecord:
    """A file that was written.  `name` is without `.sealed`."""

    name: str
    size: int  # on the disk [bytes]
    plain_size: int  # of the content [bytes]
    digest: str  # hex SHA-256 of the segments' tags where sealed, digest of the content (storage/digests.py) where not
    salt: str | None = None  # hex; a sealed file has one of its own, with which no segment of another file opens


class Vault:
    """Files of one job and one purpose.  All methods take paths without `.sealed`.

    Reading raises IntegrityError where a file is missing, is not sealed although it must be, or does not authenticate.
    Writing raises StorageError where the disk refuses.
    """

    def __init__(self, job: str, purpose: Purpose, keys: JobKeys | None = None) -> None:
        """`job` is "namespace/name".  With `keys`, everything is sealed."""
        self.job, self.purpose, self._keys = job, purpose, keys

    @classmethod
    def of_work(cls, work: Path, purpose: Purpose, key_dir: Path) -> Self:
        """For reading a sealed work directory without its job, which the keyring names."""
        job = owner_of(work / KEYRING)
        return cls(job, purpose, JobKeys(work / KEYRING, job, keks_at(key_dir)))

    @property
    def sealed(self) -> bool:
        return self._keys is not None

    @property
    def key_id(self) -> str | None:
        """The id of the key that seals new files; None in the clear."""
        return self._keys.to_seal().id if self._keys else None

    def name_of(self, digest: str) -> str:
        """What a name, a log line or a report calls the content that has the hex SHA-256 `digest`.

        In the clear that is the digest.  Beside sealed content a digest would let everybody test guesses, so there it
        is a MAC of the digest under a key of the job: the same at every attempt, another one in every job.
        """
        return self._keys.name_of(digest) if self._keys else digest

    def on_disk(self, path: Path) -> Path:
        """The file that holds the content of `path`."""
        return path.with_name(path.name + SUFFIX) if self.sealed else path

    def exists(self, path: Path) -> bool:
        """Whether the file exists, sealed or in the clear as this vault writes it."""
        return self.on_disk(path).exists()

    def write(self, path: Path, data: Bytes | Iterable[Bytes], context: Context = Context()) -> FileRecord:
        """Write a new file, from one buffer or piece by piece.  It is on the disk when this returns.

        Raises StorageError where the file exists, or cannot be written whole; what was written is then removed.
        """
        return self._write(self.on_disk(path), path, data, context)

    def replace(self, path: Path, data: Bytes, context: Context = Context()) -> FileRecord:
        """Give a small file a new content.  After a crash it has the old content or the new one."""
        target = self.on_disk(path)
        partial = beside(target)
        record = self._write(partial, path, data, context)
        with storing(target):
            keep_owner(partial, target)
            partial.replace(target)
            sync(target.parent)
        return record

    def read(
        self, path: Path, context: Context = Context(), *, digest: str | None = None, max_bytes: int | None = None
    ) -> bytearray:
        """The whole content, of at most `max_bytes`.  With the `digest` of a FileRecord, it must be that very file."""
        with self.open_reader(path, context) as reader:
            refuse_larger(path, reader.size, max_bytes)
            content = bytearray(reader.size)
            _compare(path, reader.read_into(memoryview(content), digest), digest)
        return content

    def document(self, path: Path, build: Callable[[Any], T]) -> T:
        """What `build` makes of a JSON document.  Raises IntegrityError where it can make nothing of it."""
        content = self.read(path, max_bytes=MAX_DOCUMENT)
        try:
            return build(parsed(content))
        except (ValueError, LookupError, TypeError, AttributeError):
            raise IntegrityError(f"{path} is not what was written there", hint=_RESTORE) from None

    def verify(
        self, path: Path, context: Context = Context(), *, digest: str | None = None, advance: Advance = unwatched
    ) -> None:
        """Read every byte and keep none; `advance` is called with the size of each piece [bytes]."""
        with self.open_reader(path, context) as reader:
            _compare(path, reader.verify(advance, digest), digest)

    def open_recorded(self, directory: Path, record: FileRecord, context: Context) -> Reader:
        """Like `open_reader`, but a sealed file must be the very one that was recorded.

        The salt shows whether it is, without reading the file.  An older version recorded no salt: there the digest
        does, and the file is read whole.
        """
        path = directory / record.name
        reader = self.open_reader(path, context)
        try:
            if self.sealed and record.salt is None:
                _compare(path, reader.verify(), record.digest)
            elif reader.salt != record.salt:
                raise _not_recorded(path, f"salt {str(reader.salt)[:16]}, recorded {str(record.salt)[:16]}")
        except BaseException:
            reader.__exit__()
            raise
        return reader

    def pieces(
        self, path: Path, context: Context = Context(), record: FileRecord | None = None
    ) -> Iterator[memoryview]:
        """The content in order.  Each piece is valid until the next one is taken.

        With `record` it must be that very file.  A file in the clear shows only at its end whether it is.
        """
        content = ContentDigest(record.digest if record else None)
        with (
            reading(path),
            self.open_recorded(path.parent, record, context) if record else self.open_reader(path, context) as reader,
        ):
            for piece in reader.pieces():
                if not self.sealed:
                    content.update(piece)
                yield piece
        if record and not self.sealed:
            _compare(path, str(content), record.digest)

    def open_reader(self, path: Path, context: Context = Context()) -> Reader:
        """Random access to the content, as a context manager."""
        target = self.on_disk(path)
        if not target.exists():
            raise self._missing(path, target)
        if self._keys is None:
            return ClearReader(target)
        return _unsealed(target, self._keys, self._bound_to(path, context))

    def _write(self, target: Path, path: Path, data: Bytes | Iterable[Bytes], context: Context) -> FileRecord:
        needed = memoryview(data).nbytes if isinstance(data, Bytes) else None
        with NewFile(target, self._mode, needed) as file:
            writer = self._writer(file, path, context)
            for piece in (data,) if isinstance(data, Bytes) else data:
                writer.write(piece)
            writer.close()
        return FileRecord(path.name, writer.size, writer.plain_size, writer.digest, writer.salt)

    def _writer(self, file: Sink, path: Path, context: Context) -> SealedWriter | ClearWriter:
        if self._keys is None:
            return ClearWriter(file)
        return SealedWriter(file, self._keys.to_seal().material, self._bound_to(path, context))

    def _bound_to(self, path: Path, context: Context) -> bytes:
        directory = "" if self.purpose is Purpose.CHECKPOINT else path.parent.name.split(PARTIAL)[0]
        return associated_data(self.job, self.purpose, path.name, directory=directory, context=context)

    @property
    def _mode(self) -> int:
        # A server in the volume's group may read a result; only the job itself needs its state.
        return 0o640 if self.purpose is Purpose.EXPORT else 0o600

    def _missing(self, path: Path, target: Path) -> IntegrityError:
        if self.sealed and path.exists():
            return IntegrityError(f"{path} is not sealed, and this job reads sealed files only", hint=_DOWNGRADE)
        sealed = path.with_name(path.name + SUFFIX)
        if sealed.exists():
            return IntegrityError(
                f"{sealed} is sealed, and this job has no key", hint="give checkpoint.encryption.keyRef"
            )
        return IntegrityError(f"{target} is missing", hint=_RESTORE)


MAX_DOCUMENT: Final = 256 << 20  # [bytes] of JSON: the manifest of a model of a million tensors is about as large
_TOO_LARGE: Final = "somebody put another file in its place: restore it, or delete its directory to have it made again"
_RESTORE = "restore it, or delete its directory to have it made again"
_DOWNGRADE = "somebody put it there; or the job ran without encryption before: give it a volume of its own"


def associated_data(job: str, purpose: str, name: str, *, directory: str = "", context: Context = Context()) -> bytes:
    """What a sealed file is bound to: seven lines of UTF-8 without a final newline.  An absent value is `-`."""
    step, rank = ("-" if number is None else str(number) for number in (context.step, context.rank))
    lines = ("dstj-sealed/1", job, purpose, directory or "-", step, rank, name)
    if any("\n" in line for line in lines):  # a name with a line break could pass for another job's file
        raise IntegrityError(f"a sealed file is bound to single lines, not to {shown(name)}", hint="see who named it")
    return "\n".join(lines).encode()


def refuse_larger(path: Path, size: int, max_bytes: int | None) -> None:
    """Raise IntegrityError before memory is taken for a content that is not what it should be."""
    if max_bytes is not None and size > max_bytes:
        raise IntegrityError(f"{path} has {size:,} bytes, at most {max_bytes:,} are read", hint=_TOO_LARGE)


def _unsealed(path: Path, keys: JobKeys, bound_to: bytes) -> SealedReader:
    """Open with the first key that fits: a file does not name the key that sealed it."""
    *others, last = keys.to_read()
    for key in others:
        with suppress(IntegrityError):
            return SealedReader(path, key.material, bound_to)
    return SealedReader(path, last.material, bound_to)


def _compare(path: Path, actual: str, expected: str | None) -> None:
    if expected not in (None, actual):
        raise _not_recorded(path, f"digest {actual[:16]}, recorded {str(expected)[:16]}")


def _not_recorded(path: Path, difference: str) -> IntegrityError:
    return IntegrityError(
        f"{path} is not the file that was recorded: {difference}",
        hint="it was replaced by another one; restore it from a backup",
    )
