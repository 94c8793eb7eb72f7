"""Base model and data become what training reads.

Node 0 does the work, the other nodes wait for it.  What is there already is kept: directories are named by
a digest of all that shapes them.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

from deepseek_trainer.commit import committed
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.contract.names import ENV_NODE_INDEX, ENV_RUN_ID, Paths
from deepseek_trainer.model_source import prepare_model
from deepseek_trainer.packing import row_dtype
from deepseek_trainer.pointer import point, wait
from deepseek_trainer.shards import (
    FORMAT,
    Manifest,
    Prompt,
    Shard,
    SplitCounts,
    read_manifest,
    write_manifest,
    write_prompts,
    write_rows,
)
from deepseek_trainer.sources import Record, Source, Split
from deepseek_trainer.tally import Tally
from deepseek_trainer.tokenizer import id_limit, trained_tokenizer
from deepseek_trainer.tokenizer_files import NAMES as TOKENIZER_NAMES
from deepseek_trainer.tokenizer_files import load_tokenizer, save_tokenizer
from deepseek_trainer.training_config import load_config
from deepseek_trainer.vault import Vault, follow_rotation

log = logging.getLogger(__name__)

TRAIN: Final = "train"
VALIDATION: Final = "validation"
SPLITS: Final = (TRAIN, VALIDATION)

VALIDATION_FRACTION: Final = 0.05
OPENING: Final = 80  # [characters] of a held-out text that the model is asked to continue
MAX_PROMPTS: Final = 1000  # evaluation.generations is at most this
TOKENIZER_BYTES: Final = 1 << 27  # data that a tokenizer is trained on, about; more would hardly change its merges


@dataclass(frozen=True, slots=True)
class Inputs:
    """Records of both splits: from two places, or from one that is split by record hash."""

    train: Source
    validation: Source
    split: Split | None

    @classmethod
    def find(cls, config: TrainingConfig, paths: Paths) -> Self:
        """Raises DataError for all that is wrong with places and files, and, where it must split, with records."""
        spec = config.data
        train = Source.find(spec.train, spec, paths)
        if spec.validation is not None:
            return cls(train, Source.find(spec.validation, spec, paths), None)
        return cls(train, train, Split.of(train.records(), spec.validation_fraction or VALIDATION_FRACTION))

    def records(self, split: str) -> Iterator[Record]:
        source = self.validation if split == VALIDATION else self.train
        if self.split is None:
            return source.records()
        held_out = split == VALIDATION
        return (record for record in source.records() if self.split.holds_out(record) is held_out)


def prepare_node() -> None:
    """Raises JobError; the base model and the data are complete and agreed upon when it returns."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    paths, run_id = Paths.from_env(), os.environ[ENV_RUN_ID]
    config = load_config(paths.config)
    follow_rotation(config, paths)
    vault = Vault.for_data(config, paths)
    if int(os.environ[ENV_NODE_INDEX]) == 0:
        prepare(config, paths, vault, run_id)
    else:
        wait(paths, run_id, vault)


def prepare(config: TrainingConfig, paths: Paths, vault: Vault, run_id: str) -> Path:
    """Prepare model and data, unless they are there, and point the nodes of this run to them; the data's directory."""
    paths.prepared.mkdir(parents=True, exist_ok=True)
    inputs = Inputs.find(config, paths)  # before the model: a bad record costs seconds, not minutes
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
        method = config.method.settled(records, has_base=model is not None)
        log.info("method.type Auto: %s, for %d training records", method.type.value, records)
    point(paths, run_id, directory.name, vault)
    return directory


def data_digest(config: TrainingConfig, inputs: Inputs, tokenizer: str | None) -> str:
    """SHA-256 over the input files' names and contents, and all that shapes the rows.

    `tokenizer` is the digest of the base model's; one that is trained on the data follows from them.
    """
    architecture = config.model.architecture
    shaping = {
        "format": FORMAT,
        "train": inputs.train.digest(),
        "validation": None if inputs.split else inputs.validation.digest(),
        "heldOut": inputs.split and inputs.split.threshold,
        "data": config.data.model_dump(mode="json", exclude={"train", "validation", "validation_fraction", "sealed"}),
        "tokenizer": tokenizer or (architecture and architecture.vocab_size),
        "sealed": config.seals_data,
    }
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()


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
        counts = {split: counts for split, (_, counts) in parts.items()}
        shards = {split: shards for split, (shards, _) in parts.items()}
        write_manifest(Manifest(digest, length, id_limit(tokenizer), counts, shards), self.directory, self.vault)

    def _split(self, split: str, tokenizer: Any) -> tuple[tuple[Shard, ...], SplitCounts]:
        tally = Tally(split, self.config.data, tokenizer)
        dtype = row_dtype(self.config.data.sequence_length, id_limit(tokenizer))
        shards = write_rows(tally.rows(self.inputs.records(split)), self.directory, split, dtype, self.vault)
        tally.report()
        _refuse_empty(split, tally.counts(), self.config.data.sequence_length)
        return shards, tally.counts()

    def _trained(self) -> Any:
        """The tokenizer of a model from scratch, trained on the data and kept beside them."""
        assert self.config.model.architecture is not None, "the spec asks for exactly one of base and architecture"
        vocab_size = self.config.model.architecture.vocab_size
        every = 1 + self.inputs.train.size_bytes() // TOKENIZER_BYTES
        sample = islice(self.inputs.records(TRAIN), 0, None, every)
        texts = (text for record in sample for text in (record.prompt, record.text) if text)
        tokenizer = trained_tokenizer(texts, vocab_size)
        log.info("trained a tokenizer of %d tokens (vocabSize %d)", id_limit(tokenizer), vocab_size)
        save_tokenizer(tokenizer, self.directory, self.vault)
        return tokenizer

    def _prompts(self) -> Iterator[Prompt]:
        for record in islice(self.inputs.records(VALIDATION), MAX_PROMPTS):
            if record.prompt is not None:
                yield Prompt(record.prompt, record.text, record.must_contain)
            elif opening := record.text[:OPENING].rpartition(" ")[0]:
                yield Prompt(opening, record.text[len(opening) : 4 * OPENING].strip())


def _refuse_empty(split: str, counts: SplitCounts, length: int) -> None:
    if counts.rows:
        return
    if not counts.records:
        raise DataError(f"data.{split} has no record: its files are empty", hint="give at least one non-empty record")
    raise DataError(
        f"data.{split} has nothing to learn: each of its {counts.records} prompts fills data.sequenceLength={length}",
        hint="raise data.sequenceLength, or shorten the prompts",
    )


def _summary(manifest: Manifest) -> str:
    parts = (f"{split} {counts.records} records, {counts.rows} rows" for split, counts in manifest.counts.items())
    return "; ".join(parts)
