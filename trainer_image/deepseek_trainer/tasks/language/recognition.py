"""Finds out which format a job's records have, where the job leaves that to them.

Errors name the place of a record, never its content.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.fields import Fields, some
from deepseek_trainer.data.reading import Reading, Value
from deepseek_trainer.data.shards import not_a_manifest, read_manifest
from deepseek_trainer.data.sources import Source
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.tasks.language.names import Names
from deepseek_trainer.tasks.language.reading import readers
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.shape import Seen, mixed, shape_of

log = logging.getLogger(__name__)

FACT: Final = "data_format"  # of the manifest of data whose format was found out


def seen_first(config: TrainingConfig, paths: Paths) -> Seen:
    """What the first record of each place says; data without any record are Text.

    Raises DataError where two places differ, and for records of which neither Text nor Instruction can be made.
    """
    first = [*_first_records(config, paths)] or [Seen("no record", DataFormat.TEXT)]
    for other in first[1:]:
        if other.format is not first[0].format:
            raise mixed(other, first[0])
    log.info("data.format Auto: %s, as %s is", first[0].format, first[0].place)
    return first[0]


def settled(config: TrainingConfig, directory: Path, vault: Vault) -> TrainingConfig:
    """The job with the format that its prepared data in `directory` were found to have."""
    if config.data.format is not DataFormat.AUTO:
        return config
    try:
        return of_format(config, DataFormat(read_manifest(directory, vault).facts[FACT]))
    except (KeyError, ValueError):
        raise not_a_manifest(directory) from None


def of_format(config: TrainingConfig, data_format: DataFormat) -> TrainingConfig:
    return config.model_copy(update={"data": config.data.model_copy(update={"format": data_format})})


def _first_records(config: TrainingConfig, paths: Paths) -> Iterator[Seen]:
    for place in config.data.places:
        source = Source.find(place, config.data, paths, _shapes(config.data), is_private=config.is_private)
        for record in source.records():
            yield Seen(record.place, DataFormat(record.text))
            break


def _shapes(spec: DataSpec) -> Reading[Record]:
    """A reading whose records say nothing but their format."""
    names, ignored = Names.of(spec), spec.ignored_fields or ()

    def record(value: Value, name: str, line: int) -> Record | None:
        fields = Fields(value, f"{name}:{line}", ignored)
        shape = shape_of(fields.there, names, spec.text_field)
        if shape is None and isinstance(value.get(spec.text_field), str):
            return None  # a blank text
        if shape in (DataFormat.TEXT, DataFormat.INSTRUCTION):
            return Record(None, shape, name, line)
        raise _unknown(fields, shape)

    return Reading(readers(spec), lambda columns, _: columns, record, lambda _: "give records of Text or Instruction")


def _unknown(fields: Fields, shape: DataFormat | None) -> DataError:
    if shape is not None:
        return DataError(f"{fields.place} is a record of {shape}, which Auto is not", hint=f"set data.format: {shape}")
    unknown = f"{fields.place}: data.format Auto knows no record of these fields"
    return DataError(
        f"{unknown}, {len(fields.names)} of them",
        hint="set data.format and name the fields, see docs/data-formats.md",
        full=f"{unknown}: {some(fields.names) or 'none'}",
    )
