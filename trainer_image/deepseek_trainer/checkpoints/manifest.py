"""The JSON of a checkpoint (manifest.json) and of the record of all checkpoints (HEAD.json).

Pure: JSON in, JSON out.  docs/checkpoint-format.md has the rules of recovery.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Self

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.foreign import file_name, optional, whole, word
from deepseek_trainer.storage.vault import FileRecord

MANIFEST: Final = "manifest.json"
MANIFEST_FORMAT: Final = "dstj-checkpoint/3"
MANIFEST_FORMAT_2: Final = "dstj-checkpoint/2"  # files in the clear have digests of SHA-256
MANIFEST_FORMAT_1: Final = "dstj-checkpoint/1"  # rank 0 wrote all that ranks share; no salts
HEAD: Final = "HEAD.json"
HEAD_FORMAT: Final = "dstj-head/1"


@dataclass(frozen=True, slots=True)
class RankFile:
    """One file of a checkpoint, and the rank that wrote it."""

    rank: int
    record: FileRecord

    def to_json(self) -> dict[str, Any]:
        record = self.record
        return {
            "name": record.name,
            "rank": self.rank,
            "size": record.size,
            "plainSize": record.plain_size,
            "digest": record.digest,
            "salt": record.salt,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        size, plain_size, digest, salt = data["size"], data["plainSize"], data["digest"], data.get("salt")
        record = FileRecord(file_name(data["name"]), whole(size), whole(plain_size), word(digest), optional(word, salt))
        return cls(whole(data["rank"]), record)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor, or a shard of it: its path in the state, safetensors' name of its dtype, its shape and its file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    offset: tuple[int, ...] | None = None  # of a shard: where it begins in the whole tensor
    whole: tuple[int, ...] | None = None  # of a shard: shape of the whole tensor

    @property
    def key(self) -> str:
        """Its name in the file."""
        return self.name if self.offset is None else f"{self.name}@{','.join(map(str, self.offset))}"

    def to_json(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if value is not None}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        shape, offset, of = (optional(_sizes, data.get(key)) for key in ("shape", "offset", "whole"))
        return cls(word(data["name"]), word(data["dtype"]), shape or (), word(data["file"]), offset, of)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The last file of a checkpoint.  It lists all others, and authenticates them by their digests."""

    job: str
    step: int
    created: str  # RFC 3339
    key_id: str | None  # None: in the clear
    world_size: int
    attempt: int
    files: tuple[RankFile, ...]
    tensors: tuple[TensorInfo, ...]
    meta: Mapping[str, Any]
    lineage: int = 0  # how often newer checkpoints had been set aside before this one
    previous: str | None = None  # digest of the manifest of the checkpoint before this one

    def to_json(self) -> bytes:
        content = {
            "format": MANIFEST_FORMAT,
            "job": self.job,
            "step": self.step,
            "created": self.created,
            "keyId": self.key_id,
            "worldSize": self.world_size,
            "attempt": self.attempt,
            "lineage": self.lineage,
            "previous": self.previous,
            "files": [file.to_json() for file in self.files],
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "meta": self.meta,
        }
        return json_text(content).encode()

    @classmethod
    def from_json(cls, raw: bytes | bytearray) -> Self:
        """Raises IntegrityError for a format that this version does not know."""
        try:
            data = json.loads(raw)
            _check_format(data, MANIFEST_FORMAT, MANIFEST_FORMAT_2, MANIFEST_FORMAT_1)
            return cls(
                job=word(data["job"]),
                step=whole(data["step"]),
                created=word(data["created"]),
                key_id=optional(word, data["keyId"]),
                world_size=whole(data["worldSize"]),
                attempt=whole(data["attempt"]),
                lineage=whole(data["lineage"]),
                previous=optional(word, data["previous"]),
                files=tuple(RankFile.from_json(file) for file in data["files"]),
                tensors=tuple(TensorInfo.from_json(tensor) for tensor in data["tensors"]),
                meta=dict(data["meta"]),
            )._consistent()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _unknown("manifest", MANIFEST_FORMAT) from None

    def _consistent(self) -> Self:
        if not {tensor.file for tensor in self.tensors} <= {file.record.name for file in self.files}:
            raise ValueError("a tensor lies in a file that is not listed")
        return self

    def files_of(self, rank: int) -> tuple[RankFile, ...]:
        return tuple(file for file in self.files if file.rank == rank)


@dataclass(frozen=True, slots=True)
class Commit:
    """A complete checkpoint: its step, and the digest of its manifest."""

    step: int
    digest: str


@dataclass(frozen=True, slots=True)
class Head:
    """The complete checkpoints that a store must find, oldest first."""

    job: str
    owner: str  # random id of the run that took the store over last; a run that finds another id here must not write
    lineage: int = 0
    best: int | None = None  # step with the lowest validation loss, if it is kept
    commits: tuple[Commit, ...] = ()
    exported: str | None = None  # digest of the manifest of the last checkpoint of a run that has exported its model

    def to_json(self) -> bytes:
        return json_text({"format": HEAD_FORMAT} | asdict(self)).encode()

    @classmethod
    def from_json(cls, raw: bytes | bytearray) -> Self:
        try:
            data = json.loads(raw)
            _check_format(data, HEAD_FORMAT)
            commits = tuple(Commit(whole(each["step"]), word(each["digest"])) for each in data["commits"])
            best, exported = optional(whole, data["best"]), optional(word, data.get("exported"))
            return cls(word(data["job"]), word(data["owner"]), whole(data["lineage"]), best, commits, exported)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise _unknown("HEAD record", HEAD_FORMAT) from None

    @property
    def newest(self) -> Commit | None:
        return self.commits[-1] if self.commits else None

    @property
    def steps(self) -> tuple[int, ...]:
        return tuple(commit.step for commit in self.commits)

    def digest_of(self, step: int) -> str | None:
        return next((commit.digest for commit in self.commits if commit.step == step), None)

    def is_followed_by(self, manifest: Manifest) -> bool:
        """Whether `manifest` is of the checkpoint that would have been recorded next, had its run not crashed."""
        newest = self.newest
        expected = newest.digest if newest else None
        is_newer = newest is None or manifest.step > newest.step
        return is_newer and manifest.previous == expected and manifest.lineage == self.lineage

    def with_commit(self, commit: Commit) -> Self:
        older = tuple(each for each in self.commits if each.step < commit.step)
        return replace(self, commits=(*older, commit))

    def without(self, steps: frozenset[int]) -> Self:
        return replace(self, commits=tuple(commit for commit in self.commits if commit.step not in steps))


def _sizes(values: Iterable[object]) -> tuple[int, ...]:
    return tuple(map(whole, values))


def _check_format(data: Mapping[str, Any], *known: str) -> None:
    if data["format"] not in known:
        raise ValueError


def _unknown(what: str, expected: str) -> IntegrityError:
    return IntegrityError(f"not a {what} of format {expected}", hint="a newer version wrote it, or it was damaged")
