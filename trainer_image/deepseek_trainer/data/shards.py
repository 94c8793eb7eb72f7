"""Rows on disk: shard files, and the manifest that lists them.

A prepared directory, named after its digest (`Vault.name_of`):

    manifest.json          format, digest, counts, shards; written last
    train-00000.rows ...   rows of the task's dtype, at most SHARD_BYTES a file; one source or class after the other
    validation-00000.rows ...
    train.order            only with a curriculum: row indices (i64), each source's or class's own, easy ones first
    ...                    what the task needs beside the rows: see its preparer

A vault writes and reads all of it, sealed or in the clear.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import numpy as np

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.foreign import file_name, whole, word
from deepseek_trainer.contract.progress import MOST_NAMES, RecordCounts
from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.permutation import Indices
from deepseek_trainer.storage.opening import opened_own
from deepseek_trainer.storage.vault import MAX_DOCUMENT, Vault

FORMAT: Final = "dstj-data/1"
MANIFEST: Final = "manifest.json"
ORDER: Final = "train.order"
UNUSED: Final = "unused"
SHARD_BYTES: Final = 64 << 20  # preparation holds one shard in memory, and so does unsealing

_AGAIN: Final = "delete the prepared directory: it is made again"

Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of rows."""

    name: str
    rows: int
    digest: str

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(file_name(data["name"]), whole(data["rows"]), word(data["digest"]))


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """What became of the records of one split.  `amounts`: what the task counts besides, by name."""

    records: int
    rows: int
    dropped: int = 0  # records of which nothing is left to learn
    skipped: int = 0  # bad records, and files that could not be read on; if validation is held out, train counts all
    amounts: Mapping[str, int] = field(default_factory=dict)
    unused: Mapping[str, int] = field(default_factory=dict)  # fields of records that were not used: in how many each

    def to_json(self) -> Json:
        """The numbers side by side, without the fields that were not used: their names are of the data."""
        return {"records": self.records, **self.amounts} | {
            name: getattr(self, name) for name in ("rows", "dropped", "skipped")
        }

    def in_full(self) -> Json:
        """As `to_json`, with the fields that were not used, if there are any."""
        return self.to_json() | ({UNUSED: dict(self.unused)} if self.unused else {})

    @classmethod
    def from_json(cls, numbers: Mapping[str, Any]) -> Self:
        unused = {name: whole(number) for name, number in numbers.get(UNUSED, {}).items()}
        known = {name: whole(number) for name, number in numbers.items() if name != UNUSED}
        own = {name: known.pop(name) for name in ("records", "rows", "dropped", "skipped") if name in known}
        return cls(**own, amounts=known, unused=unused)


@dataclass(frozen=True, slots=True)
class SourceRows:
    """Which train rows belong to one source or class, and what became of its records.

    A bad record has no class: it counts for the first.
    """

    name: str
    first: int
    counts: SplitCounts

    def to_json(self) -> Json:
        return {"name": self.name, "first": self.first, "counts": self.counts.in_full()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        return cls(word(data["name"]), whole(data["first"]), SplitCounts.from_json(data["counts"]))


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a prepared directory holds.  `digest` names the directory, `facts` are the task's: how rows look."""

    digest: str
    facts: Json
    counts: dict[str, SplitCounts]
    shards: dict[str, tuple[Shard, ...]]
    sources: tuple[SourceRows, ...] = ()  # of the train split, if it has several; or its classes

    def to_json(self) -> bytes:
        fields: Json = {"format": FORMAT, "digest": self.digest, **self.facts}
        fields["counts"] = {split: counts.in_full() for split, counts in self.counts.items()}
        fields["shards"] = {split: [asdict(shard) for shard in shards] for split, shards in self.shards.items()}
        if self.sources:  # left out if there are none, so that older trainers, which know no sources, can read it
            fields["sources"] = [source.to_json() for source in self.sources]
        return json_text(fields, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Raises IntegrityError for a format that this version cannot read."""
        try:
            data = json.loads(raw)
            if data.pop("format") != FORMAT:
                raise ValueError
            return cls(
                digest=word(data.pop("digest")),
                counts=_of_each_split(data.pop("counts"), SplitCounts.from_json),
                shards=_with_rows(_of_each_split(data.pop("shards"), _shards)),
                sources=tuple(SourceRows.from_json(each) for each in data.pop("sources", ())),
                facts=data,
            )
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise not_a_manifest() from None


def not_a_manifest(directory: Path | None = None) -> IntegrityError:
    what = f"{directory / MANIFEST} is not" if directory else "not"
    return IntegrityError(f"{what} a {FORMAT} manifest", hint=_AGAIN)


def _of_each_split(data: Mapping[str, Any], read: Callable[[Any], T]) -> dict[str, T]:
    return {split: read(data[split]) for split in ("train", "validation")}


def _shards(data: Sequence[Any]) -> tuple[Shard, ...]:
    """Those of one split, each with rows."""
    if any(not whole(shard["rows"]) for shard in data):
        raise ValueError("a shard without rows")
    return tuple(map(Shard.from_json, data))


def _with_rows(shards: dict[str, tuple[Shard, ...]]) -> dict[str, tuple[Shard, ...]]:
    """Nothing may be held out, but something must be trained on."""
    if not shards["train"]:
        raise ValueError("no rows to train on")
    return shards


def total(counts: Iterable[SplitCounts]) -> SplitCounts:
    """The sum of all counts."""
    summed, unused = Counter(records=0, rows=0), Counter[str]()
    for each in counts:
        summed.update(each.to_json())
        unused.update(each.unused)
    return replace(SplitCounts.from_json(summed), unused=unused)


def record_counts(splits: Mapping[str, SplitCounts], batch: int, *, is_private: bool) -> RecordCounts:
    """What became of the records of all splits, as a run with so many rows in a step tells it.

    Of a private job it has the number of fields that were not used, without their names.
    """
    summed = total(splits.values())
    most_first = dict(sorted(summed.unused.items(), key=lambda each: -each[1])[:MOST_NAMES])
    return RecordCounts(
        records=summed.records,
        dropped=summed.dropped,
        skipped=summed.skipped,
        cut=summed.amounts.get("cut", 0),
        unused_fields=len(summed.unused),
        unused=None if is_private or not most_first else most_first,
        rows=splits["train"].rows,
        batch=batch,
    )


def source_rows(counts: Mapping[str, SplitCounts]) -> tuple[SourceRows, ...]:
    """Where the rows of each source begin.  The sources' rows lie one after the other."""
    ends = accumulate(each.rows for each in counts.values())
    return tuple(
        SourceRows(name, end - each.rows, each) for (name, each), end in zip(counts.items(), ends, strict=True)
    )


def write_manifest(manifest: Manifest, directory: Path, vault: Vault) -> None:
    """Written after all other files: a directory that has a manifest is complete."""
    vault.write(directory / MANIFEST, manifest.to_json())


def read_manifest(directory: Path, vault: Vault) -> Manifest:
    """The manifest in `directory`.  Raises IntegrityError if it belongs to another directory."""
    manifest = Manifest.from_json(bytes(vault.read(directory / MANIFEST, max_bytes=MAX_DOCUMENT)))
    name = vault.name_of(manifest.digest)
    if name != directory.name:
        raise IntegrityError(f"{directory} holds prepared data {name}", hint=_AGAIN)
    return manifest


def write_order(by_difficulty: Indices, directory: Path, vault: Vault) -> None:
    vault.write(directory / ORDER, by_difficulty.astype("<i8").tobytes())


def read_order(manifest: Manifest, directory: Path, vault: Vault) -> Indices:
    """The row indices, easy ones first.  Raises IntegrityError if their number is not that of the train rows."""
    content = vault.read(directory / ORDER)
    rows = manifest.counts["train"].rows
    if len(content) != 8 * rows:
        raise IntegrityError(f"{directory / ORDER} has {len(content)} bytes: it must have {8 * rows}", hint=_AGAIN)
    return np.frombuffer(content, "<i8")


def write_rows(
    rows: Iterable[RowArray], directory: Path, split: str, dtype: np.dtype[np.void], vault: Vault
) -> tuple[Shard, ...]:
    """Write rows, each of shape (1,), as shards of one split.  All shards but the last have the same number of rows."""
    return tuple(
        Shard(name, len(block), vault.write(directory / name, block.view(np.uint8).data).digest)
        for name, block in ((f"{split}-{i:05d}.rows", block) for i, block in enumerate(_blocks(rows, dtype)))
    )


def _blocks(rows: Iterable[RowArray], dtype: np.dtype[np.void]) -> Iterator[RowArray]:
    """The rows of one shard after the other.  It is the same array each time, filled anew."""
    block = np.empty(max(1, SHARD_BYTES // dtype.itemsize), dtype)
    filled = 0
    for row in rows:
        block[filled] = row[0]
        filled += 1
        if filled == len(block):
            yield block
            filled = 0
    if filled:
        yield block[:filled]


def read_rows(
    manifest: Manifest, directory: Path, split: str, dtype: np.dtype[np.void], vault: Vault
) -> list[RowArray]:
    """The shards of one split, mapped from the files or unsealed into memory.

    Raises IntegrityError if a shard is not the one that the manifest lists.
    """
    return [_read_shard(shard, directory / shard.name, dtype, vault) for shard in manifest.shards[split]]


def _read_shard(shard: Shard, path: Path, dtype: np.dtype[np.void], vault: Vault) -> RowArray:
    expected = shard.rows * dtype.itemsize
    with vault.open_reader(path) as reader:
        if reader.size != expected:
            raise IntegrityError(f"{path} has {reader.size} bytes, its manifest says {expected}", hint=_AGAIN)
    if vault.sealed:
        return np.frombuffer(vault.read(path, digest=shard.digest), dtype)
    with opened_own(path) as file:
        return np.frombuffer(np.memmap(file, np.uint8, mode="r"), dtype)
