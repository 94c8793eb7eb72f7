"""Base model and data become what training reads.

Node 0 does the work, the other nodes wait for it.  What is there already is kept: directories are named by
a digest of all that shapes them.
"""

import hashlib
import json
import logging
import os
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, Self

from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.contract.names import ENV_NODE_INDEX, ENV_RUN_ID, Paths
from deepseek_trainer.data.classes import Classes, unbalanced
from deepseek_trainer.data.curriculum import by_difficulty, graded
from deepseek_trainer.data.pointer import point, wait
from deepseek_trainer.data.shards import (
    FORMAT,
    Manifest,
    Prompt,
    RowArray,
    Shard,
    SplitCounts,
    read_manifest,
    source_rows,
    total,
    write_manifest,
    write_order,
    write_prompts,
    write_rows,
)
from deepseek_trainer.data.sources import Skipped, Source, Split, unheard
from deepseek_trainer.data.tally import Tally
from deepseek_trainer.language.packing import row_dtype
from deepseek_trainer.language.records import Record
from deepseek_trainer.language.tokenizer import id_limit, trained_tokenizer
from deepseek_trainer.language.tokenizer_files import NAMES as TOKENIZER_NAMES
from deepseek_trainer.language.tokenizer_files import load_tokenizer, save_tokenizer
from deepseek_trainer.storage.commit import committed, with_room
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.worker.training_config import load_config
from deepseek_trainer.worker.vaults import data_vault, follow_rotation

log = logging.getLogger(__name__)

TRAIN: Final = "train"
VALIDATION: Final = "validation"
SPLITS: Final = (TRAIN, VALIDATION)

# Fields of data that leave rows as they are, or that the digest has in another form.
NOT_SHAPING: Final = {"train", "sources", "curriculum", "validation", "validation_fraction", "sealed"}
VALIDATION_FRACTION: Final = 0.05
OPENING: Final = 80  # [characters] of a held-out text that the model is asked to continue
MAX_PROMPTS: Final = 1000  # evaluation.generations is at most this, and no more are classified
# Of DataSpec, since the first `FORMAT`.
LATER_FIELDS: Final = ("messages_field", "on_bad_record", "balance_by", "chosen_field", "rejected_field")
TOKENIZER_BYTES: Final = 1 << 27  # data that a tokenizer is trained on, about; more would hardly change its merges


@dataclass(frozen=True, slots=True)
class Inputs:
    """Records of both splits: from places of their own, or all from the training places, split by record hash."""

    train: Mapping[str, Source]  # by name; that of `data.train` is empty
    validation: Source | None
    split: Split | None
    classes: Classes | None = None  # of the training records, with data.balanceBy

    @classmethod
    def find(cls, config: TrainingConfig, paths: Paths) -> Self:
        """Raises DataError for all that is wrong with places and files, and, where it must split, with records."""
        spec = config.data
        train = {name: Source.find(place, spec, paths) for name, place in spec.training_places.items()}
        validation = Source.find(spec.validation, unbalanced(spec), paths) if spec.validation else None
        split = None
        if validation is None:
            records = chain.from_iterable(source.records() for source in train.values())
            split = Split.of(records, spec.validation_fraction or VALIDATION_FRACTION)
        classes = Classes.of(train[""], split) if spec.balance_by else None
        return cls(train, validation, split, classes)

    def names(self, split: str) -> tuple[str, ...]:
        """Sources or classes that are packed apart; validation is one whole."""
        if split != TRAIN:
            return ("",)
        return tuple(self.classes.places if self.classes else self.train)

    def place(self, split: str, name: str) -> str:
        """Where the job file or, of a class, the data speak of it; a class itself is content and not told."""
        if not name:
            return split
        return f"balanceBy[class of {self.classes.places[name]}]" if self.classes else f"sources[{name}]"

    def records(self, split: str, name: str = "", skipped: Skipped = unheard) -> Iterator[Record]:
        """Those of one split: of the source or class `name` or, where it is empty, of all in turn.

        Tells `skipped` of bad records that are left out; where one source is for both splits, only while train is read.
        """
        if split == VALIDATION and self.validation is not None:
            return self.validation.records(skipped)
        if name and self.classes is not None:
            return self.train[""].records(skipped, self.classes.entries(name))
        held_out = split == VALIDATION
        told = unheard if held_out else skipped
        sources = (self.train[name],) if name else self.train.values()
        records = chain.from_iterable(source.records(told) for source in sources)
        if self.split is None:
            return records
        return (record for record in records if self.split.holds_out(record) is held_out)

    def fills_rows(self, split: str) -> bool:
        """Whether the few records of a rare class are repeated until they fill a row."""
        return split == TRAIN and self.classes is not None

    def texts(self, enough: int) -> Iterator[str]:
        """Of every n-th training record: a sample of about `enough` bytes, where there are that many."""
        sample = islice(self.records(TRAIN), 0, None, self.every(enough))
        return (text for record in sample for text in record.texts())

    def every(self, enough: int) -> int:
        """The n whose every n-th training record makes about `enough` bytes."""
        return 1 + sum(source.size_bytes() for source in self.train.values()) // enough


def prepare_node() -> None:
    """Raises JobError; the base model and the data are complete and agreed upon when it returns."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    paths, run_id = Paths.from_env(), os.environ[ENV_RUN_ID]
    config = load_config(paths.config)
    follow_rotation(config, paths)
    vault = data_vault(config, paths)
    if int(os.environ[ENV_NODE_INDEX]) == 0:
        # A rank that was killed while it saved may have filled the disk: nothing would get far enough to clear up.
        with_room(paths.checkpoints, lambda: prepare(config, paths, vault, run_id))
    else:
        wait(paths, run_id, vault)


def prepare(config: TrainingConfig, paths: Paths, vault: Vault, run_id: str) -> Path:
    """Prepare model and data, unless they are there, and point the nodes of this run to them; the data's directory."""
    paths.prepared.mkdir(parents=True, exist_ok=True)
    inputs = Inputs.find(config, paths)  # before the model: a bad record costs seconds, not minutes
    _refuse_unlabelled(config, inputs)
    model = None if config.model.base is None else prepare_model(config, paths, vault)
    tokenizer = _tokenizer_digest(model, vault) if model else None
    directory = paths.prepared / data_digest(config, inputs, tokenizer)
    if directory.exists():
        log.info(
            "prepared data %s are there already: %s", directory.name[:12], _summary(read_manifest(directory, vault))
        )
    else:
        with committed(directory) as partial:
            _Writer(config, inputs, vault, partial).write(model, directory.name)
    if config.method.type is MethodType.AUTO:
        records = read_manifest(directory, vault).counts[TRAIN].records
        settled = config.settled(records)
        method, strategy = settled.method.type.value, settled.optimization.strategy.value
        log.info("method.type Auto: %s by %s, for %d training records", method, strategy, records)
    point(paths, run_id, directory.name, vault)
    return directory


def data_digest(config: TrainingConfig, inputs: Inputs, tokenizer: str | None) -> str:
    """SHA-256 over the input files' names and contents, and all that shapes the rows.

    `tokenizer` is the digest of the base model's; one that is trained on the data follows from them.  Shares of
    sources shape nothing: they are drawn while training.
    """
    architecture = config.model.architecture
    digests = [(name, source.digest()) for name, source in inputs.train.items()]
    shaping = {
        "format": FORMAT,
        "train": digests if config.data.sources else digests[0][1],
        "validation": inputs.validation and inputs.validation.digest(),
        "heldOut": inputs.split and inputs.split.threshold,
        "data": _shaping(config.data),
        "tokenizer": tokenizer or (architecture and architecture.vocab_size),
        "sealed": config.seals_data,
    }
    if config.data.curriculum is not None:  # absent, not null: data that earlier versions prepared keep their name
        shaping["curriculum"] = config.data.curriculum.by
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


def _shaping(spec: DataSpec) -> dict[str, Any]:
    """Fields that came later count where they are used, so that data of earlier versions keep their digest."""
    unused = {name for name in LATER_FIELDS if getattr(spec, name) == DataSpec.model_fields[name].default}
    return spec.model_dump(mode="json", exclude=NOT_SHAPING | unused)


def _tokenizer_digest(model: Path, vault: Vault) -> str:
    return hashlib.sha256(b"".join(vault.read(model / name) for name in TOKENIZER_NAMES)).hexdigest()


@dataclass(frozen=True, slots=True)
class _Writer:
    """Fills one prepared directory."""

    config: TrainingConfig
    inputs: Inputs
    vault: Vault
    directory: Path

    def write(self, model: Path | None, digest: str) -> None:
        """Everything, the manifest last."""
        length = self.config.data.sequence_length
        tokenizer = load_tokenizer(model, self.vault) if model else self._trained()
        parts = {split: self._split(split, tokenizer) for split in SPLITS}
        write_prompts(self._prompts(), self.directory, self.vault)
        shards = {split: shards for split, (shards, _) in parts.items()}
        counts = {split: total(tuple(by_source.values())) for split, (_, by_source) in parts.items()}
        sources = source_rows(parts[TRAIN][1]) if len(parts[TRAIN][1]) > 1 else ()
        manifest = Manifest(digest, length, id_limit(tokenizer), counts, shards, sources)
        write_manifest(manifest, self.directory, self.vault)

    def _split(self, split: str, tokenizer: Any) -> tuple[tuple[Shard, ...], dict[str, SplitCounts]]:
        """Its shards, and what became of each source's records."""
        counts: dict[str, SplitCounts] = {}
        lengths = array("d")
        rows = self._rows(split, tokenizer, counts)
        grades = split == TRAIN and self.config.data.curriculum is not None
        dtype = row_dtype(self.config.data.sequence_length, id_limit(tokenizer))
        shards = write_rows(graded(rows, lengths) if grades else rows, self.directory, split, dtype, self.vault)
        if grades:
            order = by_difficulty(lengths, (each.rows for each in counts.values()))
            write_order(order, self.directory, self.vault)
        return shards, counts

    def _rows(self, split: str, tokenizer: Any, counts: dict[str, SplitCounts]) -> Iterator[RowArray]:
        """Rows of one source or class after the other, so that none holds records of two; fills in `counts`."""
        for name in self.inputs.names(split):
            place = self.inputs.place(split, name)
            tally = Tally(place, self.config.data, tokenizer, fills_row=self.inputs.fills_rows(split))
            yield from tally.rows(self.inputs.records(split, name, tally.skip))
            tally.report()
            counts[name] = tally.counts()
            _refuse_empty(place, counts[name], self.config.data)

    def _trained(self) -> Any:
        """The tokenizer of a model from scratch, trained on the data and kept beside them."""
        assert self.config.model.architecture is not None, "the spec asks for exactly one of base and architecture"
        vocab_size = self.config.model.architecture.vocab_size
        tokenizer = trained_tokenizer(self.inputs.texts(TOKENIZER_BYTES), vocab_size)
        log.info("trained a tokenizer of %d tokens (vocabSize %d)", id_limit(tokenizer), vocab_size)
        save_tokenizer(tokenizer, self.directory, self.vault)
        return tokenizer

    def _prompts(self) -> Iterator[Prompt]:
        for record in islice(self.inputs.records(VALIDATION), MAX_PROMPTS):
            if record.prompt is not None:
                yield Prompt(record.prompt, record.text, record.must_contain)
            elif opening := record.text[:OPENING].rpartition(" ")[0]:
                yield Prompt(opening, record.text[len(opening) : 4 * OPENING].strip())


def _refuse_unlabelled(config: TrainingConfig, inputs: Inputs) -> None:
    """Raises DataError where a held-out response that would be classified is none of the labels."""
    if not (labels := config.evaluation.labels):
        return
    records = islice(inputs.records(VALIDATION), min(MAX_PROMPTS, config.evaluation.max_rows))
    known = [record.text in labels for record in records]
    if wrong := known.count(False):
        raise DataError(
            f"{wrong} of {len(known)} held-out responses are none of evaluation.labels: each must be one of them, "
            "letter by letter",
            hint="add the missing labels, or correct the records; spaces and line ends count",
        )


def _refuse_empty(place: str, counts: SplitCounts, spec: DataSpec) -> None:
    if counts.rows:
        return
    if not counts.records:
        raise DataError(
            f"data.{place} has no record: its files are empty, or all of it is held out",
            hint="give at least one non-empty record, or data.validation",
        )
    is_pairs = spec.format is DataFormat.PREFERENCE
    what = "pairs, of both answers with their prompt, exceeds" if is_pairs else "prompts fills"
    raise DataError(
        f"data.{place} has nothing to learn: each of its {counts.records} {what} "
        f"data.sequenceLength={spec.sequence_length}",
        hint="raise data.sequenceLength, or shorten the prompts",
    )


def _summary(manifest: Manifest) -> str:
    return "; ".join(
        f"{split} {counts.records} records, {counts.skipped} skipped, {counts.rows} rows"
        for split, counts in manifest.counts.items()
    )
