"""Turns the base model and the data into what training reads.

Node 0 does the work, and the other nodes wait for it.  A directory is named after a digest of all that shapes its
content, so that what is there already is used again (`Vault.name_of`).
"""

import hashlib
import logging
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import first_of
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.curriculum import by_difficulty, graded
from deepseek_trainer.data.draws import RowArray
from deepseek_trainer.data.earlier import remove_telling
from deepseek_trainer.data.inputs import SPLITS, TRAIN, Inputs
from deepseek_trainer.data.pointer import point
from deepseek_trainer.data.preparer import Preparer
from deepseek_trainer.data.shards import (
    FORMAT,
    Manifest,
    Shard,
    SplitCounts,
    read_manifest,
    source_rows,
    total,
    write_manifest,
    write_order,
    write_rows,
)
from deepseek_trainer.storage.commit import committed
from deepseek_trainer.storage.vault import Vault

log = logging.getLogger(__name__)

SHOWN_UNUSED: Final = 20  # fields in the log; the manifest has more
# Fields of data that leave rows as they are, or that the digest has in another form.
NOT_SHAPING: Final = {"train", "sources", "curriculum", "validation", "validation_fraction", "sealed", "images"}
# Of DataSpec, since the first `FORMAT`.
LATER_FIELDS: Final = (
    "messages_field",
    "on_bad_record",
    "balance_by",
    "chosen_field",
    "rejected_field",
    "encoding",
    "fields",
    "ignored_fields",
    "multi_turn",
    "long_records",
)


def prepare(config: TrainingConfig, paths: Paths, vault: Vault, run_id: str, preparer: Preparer[Any]) -> Path:
    """Prepare model and data unless they are there, and point this run's nodes to them.  Returns the directory."""
    paths.prepared.mkdir(parents=True, exist_ok=True)
    inputs = preparer.inputs(paths)  # before the model: a bad record costs seconds, not minutes
    preparer.refuse(inputs)
    remove_telling(paths.prepared, vault)
    model = None if config.model.base is None else prepare_model(config, paths, vault)
    digest = data_digest(config, inputs, preparer.shaping(model, vault))
    directory = paths.prepared / vault.name_of(digest)
    is_there = directory.exists()
    if not is_there:
        with committed(directory) as partial:
            preparer.begin(inputs, model, partial, vault)
            _Writer(config, inputs, preparer, vault, partial).write(digest)
    manifest = read_manifest(directory, vault)
    if is_there:
        log.info("prepared data %s are there already: %s", directory.name[:12], _summary(manifest))
    for split, counts in manifest.counts.items():
        _log_unused(split, counts, is_private=config.is_private)
        for what, way_out in preparer.lost(split, counts):
            log.warning("%s%s", what, f" (hint: {way_out})" if way_out else "")
    _log_choices(config, manifest.counts[TRAIN].records)
    point(paths, run_id, directory.name, vault)
    return directory


def data_digest(config: TrainingConfig, inputs: Inputs[Any], shaping: dict[str, Any]) -> str:
    """SHA-256 over the input files' names and contents, and all else that shapes the rows.

    `shaping` is the task's part.  Shares of sources are no part of it: they are drawn while training.
    """
    digests = [(name, source.digest()) for name, source in inputs.train.items()]
    facts = {
        "format": FORMAT,
        "train": digests if config.data.sources else digests[0][1],
        "validation": inputs.validation and inputs.validation.digest(),
        "heldOut": inputs.split and inputs.split.threshold,
        "data": _shaping(config.data),
        "sealed": config.seals_data,
        **shaping,
    }
    if config.data.curriculum is not None:  # absent, not null: data that earlier versions prepared keep their name
        facts["curriculum"] = config.data.curriculum.by
    return hashlib.sha256(json_text(facts, sort_keys=True).encode()).hexdigest()


def _shaping(spec: DataSpec) -> dict[str, Any]:
    """The settings that shape rows.  A later field counts only if it is used: earlier data keep their digest."""
    unused = {name for name in LATER_FIELDS if getattr(spec, name) == DataSpec.model_fields[name].default}
    return spec.model_dump(mode="json", exclude=NOT_SHAPING | unused)


def _log_unused(split: str, counts: SplitCounts, *, is_private: bool) -> None:
    """Name the fields that were not used.  In a private job they are private; its sealed manifest has the names."""
    fields = [f"{name} ({records} records)" for name, records in counts.unused.items()]
    if fields:
        what = str(len(fields)) if is_private else first_of(fields, SHOWN_UNUSED, str)
        log.warning("%s: unused fields of its records: %s", split, what)


def _log_choices(config: TrainingConfig, records: int) -> None:
    resolved = config.settled(records)
    method, optimization = resolved.method.type.value, resolved.optimization
    if config.method.type is MethodType.AUTO:
        log.info("method.type Auto: %s by %s, for %d training records", method, optimization.strategy.value, records)
    if config.optimization.learning_rate is None:
        log.info("optimization.learningRate: %g, the default of method %s", optimization.peak_rate, method)


@dataclass(frozen=True, slots=True)
class _Writer:
    """Fills one prepared directory."""

    config: TrainingConfig
    inputs: Inputs[Any]
    preparer: Preparer[Any]
    vault: Vault
    directory: Path

    def write(self, digest: str) -> None:
        """Write rows, what the task needs beside them and, last, the manifest."""
        parts = {split: self._split(split) for split in SPLITS}
        self.preparer.finish(self.inputs, self.directory, self.vault)
        shards = {split: shards for split, (shards, _) in parts.items()}
        counts = {split: total(by_source.values()) for split, (_, by_source) in parts.items()}
        sources = source_rows(parts[TRAIN][1]) if len(parts[TRAIN][1]) > 1 else ()
        write_manifest(Manifest(digest, self.preparer.facts, counts, shards, sources), self.directory, self.vault)

    def _split(self, split: str) -> tuple[tuple[Shard, ...], dict[str, SplitCounts]]:
        """Write the rows of one split.  Returns its shards, and what became of each source's records."""
        counts: dict[str, SplitCounts] = {}
        grades = array("d")
        rows = self._rows(split, counts)
        is_graded = split == TRAIN and self.config.data.curriculum is not None
        kept = graded(rows, self.preparer.difficulty, grades) if is_graded else rows
        shards = write_rows(kept, self.directory, split, self.preparer.dtype, self.vault)
        if is_graded:
            order = by_difficulty(grades, (each.rows for each in counts.values()))
            write_order(order, self.directory, self.vault)
        return shards, counts

    def _rows(self, split: str, counts: dict[str, SplitCounts]) -> Iterator[RowArray]:
        """Rows of one source or class after the other: none holds records of two.  Fills in `counts`."""
        for name in self.inputs.names(split):
            place = self.inputs.place(split, name)
            maker = self.preparer.maker(place, fills_row=self.inputs.fills_rows(split))
            yield from maker.rows(self.inputs.records(split, name, maker.tally.skip))
            maker.tally.report()
            counts[name] = maker.tally.counts()
            refuse_empty(place, counts[name], self.preparer)


def refuse_empty(place: str, counts: SplitCounts, preparer: Preparer[Any]) -> None:
    """Raise DataError for a source or class of whose records no row was made."""
    if counts.rows:
        return
    if counts.records:
        raise preparer.nothing_learned(place, counts)
    raise DataError(
        f"data.{place} has no record: its files are empty, or all of it is held out",
        hint="give at least one non-empty record, or data.validation",
    )


def _summary(manifest: Manifest) -> str:
    return "; ".join(
        f"{split} {counts.records} records, {counts.skipped} skipped, {counts.rows} rows"
        for split, counts in manifest.counts.items()
    )
