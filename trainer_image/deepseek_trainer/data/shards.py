"""Packed rows on disk: shard files and the manifest that speaks for them.

A prepared directory, named by its digest:

    manifest.json          format, digest, counts, shards; written last
    train-00000.rows ...   `packing.row_dtype` records, at most SHARD_BYTES a file; source, or class, after the other
    validation-00000.rows ...
    train.order            only with a curriculum: row indices (i64), for each source or class its own, easy ones first
    prompts.json           held-out questions with their answers
    tokenizer files        only where the tokenizer was trained on the data

All of it goes through a vault: sealed, or in the clear.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.data.permutation import Indices
from deepseek_trainer.language.conversation import Question, question_from
from deepseek_trainer.language.packing import row_dtype
from deepseek_trainer.storage.vault import Vault

FORMAT: Final = "dstj-data/1"
MANIFEST: Final = "manifest.json"
PROMPTS: Final = "prompts.json"
ORDER: Final = "train.order"
SHARD_BYTES: Final = 64 << 20  # written at once: memory of the preparation, and of one unsealing

_AGAIN: Final = "delete the prepared directory: it is made again"

RowArray = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class Shard:
    """One file of rows."""

    name: str
    rows: int
    digest: str


@dataclass(frozen=True, slots=True)
class SplitCounts:
    """What became of the records of one split."""

    records: int
    tokens: int
    learned_tokens: int
    rows: int
    cut: int  # records longer than a row: their end is lost
    dropped: int  # records of which nothing is left to learn: their prompt fills a row; pairs that a row cannot hold
    skipped: int = 0  # bad records, and files that could not be read on; with a share held out, all count for train


@dataclass(frozen=True, slots=True)
class SourceRows:
    """Which rows of the train split are one source's or class's, and what became of its records.

    A bad record has no class: it counts for the first.
    """

    name: str
    first: int
    counts: SplitCounts


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out record: the question, the reference (of a pair the chosen) answer, what a right one must contain."""

    prompt: Question
    response: str
    must_contain: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a prepared directory holds.  `digest` is the directory's name."""

    digest: str
    sequence_length: int
    vocab_size: int
    counts: dict[str, SplitCounts]
    shards: dict[str, tuple[Shard, ...]]
    sources: tuple[SourceRows, ...] = ()  # of the train split, where it has several; or classes

    def to_json(self) -> bytes:
        fields = asdict(self)
        if not self.sources:
            del fields["sources"]  # as it was before there were any: older trainers read it, too
        return json.dumps({"format": FORMAT} | fields, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Self:
        """Raises IntegrityError for a format that this version cannot read."""
        try:
            data = json.loads(raw)
            if data.pop("format") != FORMAT:
                raise ValueError
            counts = {split: SplitCounts(**fields) for split, fields in data.pop("counts").items()}
            shards = {split: tuple(Shard(**shard) for shard in list_) for split, list_ in data.pop("shards").items()}
            sources = tuple(_source_rows(**fields) for fields in data.pop("sources", ()))
            return cls(**data, counts=counts, shards=shards, sources=sources)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise IntegrityError(f"not a {FORMAT} manifest", hint=_AGAIN) from None


def total(counts: Iterable[SplitCounts]) -> SplitCounts:
    return SplitCounts(*map(sum, zip(*map(astuple, counts), strict=True)))


def source_rows(counts: Mapping[str, SplitCounts]) -> tuple[SourceRows, ...]:
    """Where the rows of each source are, which lie one after the other."""
    ends = accumulate(each.rows for each in counts.values())
    return tuple(
        SourceRows(name, end - each.rows, each) for (name, each), end in zip(counts.items(), ends, strict=True)
    )


def _source_rows(name: str, first: int, counts: Any) -> SourceRows:
    return SourceRows(name, first, SplitCounts(**counts))


def write_manifest(manifest: Manifest, directory: Path, vault: Vault) -> None:
    """Last of all files: what has a manifest is complete."""
    vault.write(directory / MANIFEST, manifest.to_json())


def read_manifest(directory: Path, vault: Vault) -> Manifest:
    """Raises IntegrityError for a manifest of another directory."""
    manifest = Manifest.from_json(bytes(vault.read(directory / MANIFEST)))
    if manifest.digest != directory.name:
        raise IntegrityError(f"{directory} holds prepared data {manifest.digest}", hint=_AGAIN)
    return manifest


def write_prompts(prompts: Iterable[Prompt], directory: Path, vault: Vault) -> None:
    vault.write(directory / PROMPTS, json.dumps([asdict(prompt) for prompt in prompts], ensure_ascii=False).encode())


def read_prompts(directory: Path, vault: Vault) -> tuple[Prompt, ...]:
    prompts = json.loads(bytes(vault.read(directory / PROMPTS)))
    return tuple(
        Prompt(question_from(each["prompt"]), each["response"], tuple(each["must_contain"])) for each in prompts
    )


def write_order(by_difficulty: Indices, directory: Path, vault: Vault) -> None:
    vault.write(directory / ORDER, by_difficulty.astype("<i8").tobytes())


def read_order(manifest: Manifest, directory: Path, vault: Vault) -> Indices:
    """Raises IntegrityError where it does not order the rows that the manifest speaks of."""
    content = vault.read(directory / ORDER)
    rows = manifest.counts["train"].rows
    if len(content) != 8 * rows:
        raise IntegrityError(f"{directory / ORDER} has {len(content)} bytes: it must have {8 * rows}", hint=_AGAIN)
    return np.frombuffer(content, "<i8")


def write_rows(
    rows: Iterable[RowArray], directory: Path, split: str, dtype: np.dtype[np.void], vault: Vault
) -> tuple[Shard, ...]:
    """Write rows, each of shape (1,), as shards of one split; every shard but the last has the same number."""
    return tuple(
        Shard(name, len(block), vault.write(directory / name, block.view(np.uint8).data).digest)
        for name, block in ((f"{split}-{i:05d}.rows", block) for i, block in enumerate(_blocks(rows, dtype)))
    )


def _blocks(rows: Iterable[RowArray], dtype: np.dtype[np.void]) -> Iterator[RowArray]:
    """The same array each time, filled anew."""
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


def read_rows(manifest: Manifest, directory: Path, split: str, vault: Vault) -> list[RowArray]:
    """The shards of one split: mapped from the files, or unsealed into memory.

    Raises IntegrityError where a shard is not the one that the manifest speaks of.
    """
    dtype = row_dtype(manifest.sequence_length, manifest.vocab_size)
    return [_read_shard(shard, directory / shard.name, dtype, vault) for shard in manifest.shards[split]]


def _read_shard(shard: Shard, path: Path, dtype: np.dtype[np.void], vault: Vault) -> RowArray:
    expected = shard.rows * dtype.itemsize
    with vault.open_reader(path) as reader:
        if reader.size != expected:
            raise IntegrityError(f"{path} has {reader.size} bytes, its manifest says {expected}", hint=_AGAIN)
    content = vault.read(path, digest=shard.digest) if vault.sealed else np.memmap(path, np.uint8, mode="r")
    return np.frombuffer(content, dtype)
