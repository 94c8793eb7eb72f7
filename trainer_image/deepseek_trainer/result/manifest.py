"""The manifest of a result: which files it has, which bytes they are, and what trained them.

It is written last, and demanded by whoever reads a result.  So no file of it can be left out, added, moved, or taken
from another result.  In a job that has a key the manifest is sealed, also where the job's file says that the result
itself is not: whether files are sealed is for the manifest to say, never for what lies on the volume.
"""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import Field, ValidationError

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.foreign import first_of, parsed, shown
from deepseek_trainer.contract.rules import Model
from deepseek_trainer.storage.vault import SUFFIX, FileRecord, Vault

MANIFEST: Final = "manifest.json"
FORMAT: Final = "dstj-export/1"
MAX_BYTES: Final = 16 << 20  # of a manifest; one of a thousand files has a fiftieth of it
_LISTED: Final = 3  # names in a message
MAX_DEPTH: Final = 4  # of directories; a result has one in another

_AGAIN: Final = "restore the result from a backup, or let the job export it again"
_WITHOUT: Final = (
    "a version that wrote no manifest may have made it: let the job export it again, or take its files one by one with "
    "--without-manifest, which does not show whether all are there and belong together; else it was taken away"
)

Count = Annotated[int, Field(ge=0)]


class File(Model):
    """A file of the result.  `name` is its path in the directory, without `.sealed`."""

    name: str
    size: Count  # on the disk [bytes]
    plain_size: Count  # of the content [bytes]
    digest: str
    salt: str | None = None

    @classmethod
    def of(cls, name: str, record: FileRecord) -> Self:
        return cls(name=name, size=record.size, plain_size=record.plain_size, digest=record.digest, salt=record.salt)


class Manifest(Model):
    """What the result of a job is."""

    format: Literal["dstj-export/1"] = FORMAT
    job: str
    name: str  # of the directory
    created: str  # RFC 3339
    key_id: str | None  # of the key that sealed the files; None: they are in the clear
    step: Count | None = None  # the weights are of it
    commit: str | None = None  # digest of the manifest of the checkpoint with which the run ended
    files: tuple[File, ...]

    def to_json(self) -> bytes:
        return self.model_dump_json(by_alias=True, indent=1).encode()


@dataclass(frozen=True, slots=True)
class Result:
    """A result whose manifest was authenticated, and which has the files that it lists."""

    directory: Path
    vault: Vault  # that reads its files
    records: Mapping[str, FileRecord | None]  # by path; None where no manifest says which bytes they are
    manifest: Manifest | None = None

    @property
    def size_bytes(self) -> int:
        return sum(self.vault.on_disk(self.directory / name).stat().st_size for name in self.records)

    def pieces(self, name: str) -> Iterator[memoryview]:
        """The content of one file, in order.  Raises IntegrityError where it is not what the manifest lists.

        Of a file in the clear that shows only at its end.
        """
        return self.vault.pieces(self.directory / name, record=self.records[name])


def write_manifest(manifest: Manifest, directory: Path, vault: Vault) -> None:
    vault.write(directory / MANIFEST, manifest.to_json())


def open_result(directory: Path, vault: Vault) -> Result:
    """The result in `directory`.  `vault` seals if the job has a key: then its manifest must be sealed.

    Raises IntegrityError where the manifest is missing, does not authenticate or is of another directory or job, and
    where the directory holds other files than it lists, or anything that is no file.
    """
    found = files_in(directory)  # first of all: nothing that is no file is opened
    manifest = _read(directory, found, vault)
    if manifest.name != directory.name or vault.job not in ("", manifest.job):
        raise IntegrityError(
            f"{directory} holds the result {shown(manifest.name)} of job {shown(manifest.job)}",
            hint="it was moved there; give it back its name and its volume",
        )
    reader = Vault(vault.job, vault.purpose) if manifest.key_id is None else vault
    found.pop(vault.on_disk(Path(MANIFEST)).name, None)
    _refuse_others(directory, found, {str(reader.on_disk(Path(file.name))): file for file in manifest.files})
    records = {
        file.name: FileRecord(Path(file.name).name, file.size, file.plain_size, file.digest, file.salt)
        for file in manifest.files
    }
    return Result(directory, reader, records, manifest)


def open_without_manifest(directory: Path, vault: Vault) -> Result:
    """A result that an earlier version wrote.  Where `vault` seals, each file must authenticate by itself."""
    found, suffix = sorted(files_in(directory)), SUFFIX if vault.sealed else ""
    if f"{MANIFEST}{suffix}" in found:
        return open_result(directory, vault)
    if clear := [path for path in found if not path.endswith(suffix)]:
        raise IntegrityError(f"{directory} has a file that is not sealed: {shown(clear[0])}", hint=_AGAIN)
    return Result(directory, vault, {path.removesuffix(suffix): None for path in found})


def files_in(directory: Path) -> dict[str, int]:
    """The size of every file below `directory`, by its path there.

    Raises IntegrityError for a link, for whatever else is neither a file nor a directory, and for directories deep in
    each other.
    """
    sizes: dict[str, int] = {}
    places = [""]
    while places:
        place = places.pop()
        with os.scandir(directory / place) as entries:
            for entry in entries:
                path, status = f"{place}{entry.name}", entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    sizes[path] = status.st_size
                elif stat.S_ISDIR(status.st_mode) and path.count("/") < MAX_DEPTH:
                    places.append(f"{path}/")
                else:
                    raise IntegrityError(f"{directory}: {shown(path)} is a link or no file of a result", hint=_AGAIN)
    return sizes


def _read(directory: Path, found: Mapping[str, int], vault: Vault) -> Manifest:
    path = directory / MANIFEST
    if not {MANIFEST, f"{MANIFEST}{SUFFIX}"} & found.keys():
        raise IntegrityError(f"{directory} has no {vault.on_disk(path).name}", hint=_WITHOUT)
    content = vault.read(path, max_bytes=MAX_BYTES)
    try:
        return Manifest.model_validate(parsed(content))
    except (ValueError, ValidationError):
        raise IntegrityError(f"{path} is not a manifest of format {FORMAT}", hint=_AGAIN) from None


def _refuse_others(directory: Path, found: Mapping[str, int], listed: Mapping[str, File]) -> None:
    """Raise IntegrityError unless exactly the `listed` files are there, with their sizes."""
    for problem, names in (("lacks", listed.keys() - found.keys()), ("has too many files:", found.keys() - listed)):
        if names:
            raise IntegrityError(f"{directory} {problem} {first_of(sorted(names), _LISTED)}", hint=_AGAIN)
    for path, size in found.items():
        if size != listed[path].size:
            raise IntegrityError(
                f"{directory}: {shown(path)} has {size:,} bytes, recorded were {listed[path].size:,}", hint=_AGAIN
            )
