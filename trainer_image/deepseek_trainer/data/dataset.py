"""Prepared data as rows and batches: what the training loop reads."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.errors import TryAgainError
from deepseek_trainer.contract.names import ENV_RUN_ID, Paths
from deepseek_trainer.data.batch import Batch
from deepseek_trainer.data.classes import equal_slots
from deepseek_trainer.data.draws import Draws, RowArray
from deepseek_trainer.data.order import Order, slots_of
from deepseek_trainer.data.permutation import Indices
from deepseek_trainer.data.pointer import pointed_to
from deepseek_trainer.data.shards import (
    Json,
    Manifest,
    SourceRows,
    SplitCounts,
    not_a_manifest,
    read_manifest,
    read_order,
    read_rows,
)
from deepseek_trainer.storage.vault import Vault

B = TypeVar("B", bound=Batch)
C = TypeVar("C", bound=Batch, covariant=True)  # noqa: PLC0105
Collate = Callable[[RowArray, Draws | None], B]  # rows -> their batch; an evaluation gives no draws


class Layout(Protocol[C]):
    """What a task knows about its rows."""

    @property
    def rows_are_sorted(self) -> bool:
        """Whether the first of them are unlike the last, as where each class has a folder."""

    def dtype(self, facts: Json) -> np.dtype[np.void]:
        """The dtype of a row, given the facts in the manifest."""

    def collate(self, rows: RowArray, draws: Draws | None) -> C:
        """The batch that `rows` make."""

    def records_of_row(self, counts: SplitCounts) -> float:
        """How many records of a class one of its rows holds, on average."""


class Rows(Generic[B]):
    """The rows of one split."""

    def __init__(self, shards: Sequence[RowArray], collate: Collate[B], *, are_sorted: bool = False) -> None:
        """All `shards` but the last have the same length."""
        self._shards, self._collate, self._are_sorted = shards, collate, are_sorted
        self._per_shard = len(shards[0]) if shards else 0

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def sample(self, limit: int) -> Indices:
        """At most `limit` rows that stand for all: the first or, of sorted rows, as many from everywhere."""
        count = min(len(self), limit)
        return np.arange(count) * len(self) // count if self._are_sorted else np.arange(count)

    def read(self, indices: Sequence[int] | Indices) -> RowArray:
        """Rows `indices` as they lie on disk, in that order."""
        rows = np.empty(len(indices), self._shards[0].dtype)
        for i, index in enumerate(indices):
            shard, offset = divmod(int(index), self._per_shard)
            rows[i] = self._shards[shard][offset]
        return rows

    def batch(self, indices: Sequence[int] | Indices, draws: Draws | None = None) -> B:
        """Rows `indices`, in that order."""
        return self._collate(self.read(indices), draws)


@dataclass(frozen=True, slots=True)
class Prepared(Generic[B]):
    """A job's prepared data.

    `name`, that of their directory, stands for their content and everything that shaped it, but not for the order in
    which rows are read.  `order.digest(name)` stands for both.  `digest` is what the name was made of.
    """

    train: Rows[B]
    validation: Rows[B]
    name: str
    digest: str
    counts: Mapping[str, SplitCounts]  # "train", "validation"
    sources: tuple[SourceRows, ...]  # of a mix, or the classes of balanceBy
    order: Order  # of the train rows


def prepared_directory(paths: Paths, vault: Vault, environ: Mapping[str, str] = os.environ) -> Path:
    """The directory that this attempt's `prepare` filled.  Raises TryAgainError if there is none."""
    run_id = environ[ENV_RUN_ID]
    name = pointed_to(paths, run_id, vault)
    if name is None:
        raise TryAgainError(
            f"run {run_id} has no prepared data below {paths.prepared}", hint="run deepseek_trainer.prepare first"
        )
    return paths.prepared / name


def open_prepared(config: TrainingConfig, directory: Path, vault: Vault, layout: Layout[B]) -> Prepared[B]:
    """Open the rows in `directory`.  Raises IntegrityError if they do not authenticate."""
    manifest = read_manifest(directory, vault)
    dtype = _dtype(layout, manifest.facts, directory)
    train, validation = (
        Rows(read_rows(manifest, directory, split, dtype, vault), layout.collate, are_sorted=layout.rows_are_sorted)
        for split in ("train", "validation")
    )
    records = [layout.records_of_row(source.counts) for source in manifest.sources] if config.data.balance_by else ()
    order = _order(config.data, manifest, directory, vault, records)
    return Prepared(train, validation, directory.name, manifest.digest, manifest.counts, manifest.sources, order)


def _dtype(layout: Layout[B], facts: Json, directory: Path) -> np.dtype[np.void]:
    """Raises IntegrityError where the manifest in `directory` does not tell how rows look."""
    try:
        return layout.dtype(facts)
    except (ValueError, KeyError, TypeError):
        raise not_a_manifest(directory) from None


def _order(data: DataSpec, manifest: Manifest, directory: Path, vault: Vault, records_of_row: Sequence[float]) -> Order:
    """The order that the job wants for its train rows: sources by weight, classes equally, or easy rows first."""
    rows = tuple(source.counts.rows for source in manifest.sources) or (manifest.counts["train"].rows,)
    order = Order(rows)
    if data.sources:
        weights, minimum = [s.weight for s in data.sources], [s.minimum_slots for s in data.sources]
        order = replace(order, slots=slots_of(weights, minimum))
    if data.balance_by is not None:
        order = replace(order, slots=equal_slots(records_of_row))
    if data.curriculum is not None:
        table = read_order(manifest, directory, vault)
        order = replace(order, buckets=data.curriculum.buckets, by_difficulty=table)
    return order
