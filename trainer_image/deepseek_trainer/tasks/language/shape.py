"""Which format a record has, by the names of its fields.

Errors name the place of a record, never its content.
"""

from collections.abc import Container, Iterable
from dataclasses import dataclass

from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.tasks.language.names import Names


@dataclass(frozen=True, slots=True)
class Seen:
    """The first record of a job that leaves its format to the records."""

    place: str
    format: DataFormat


def shape_of(there: Container[str], names: Names, text_field: str) -> DataFormat | None:
    """The format of records with these fields; None if no format can be made of them."""
    if _has(there, names.rejected) and (_has(there, names.chosen) or _has(there, names.messages)):
        return DataFormat.PREFERENCE
    if _has(there, names.messages) or (_has(there, names.prompt) and _has(there, names.response)):
        return DataFormat.INSTRUCTION
    return DataFormat.TEXT if text_field in there else None


def refuse_other_shape(
    there: Container[str], place: str, spec: DataSpec, names: Names, first: Seen | None, *, is_table: bool = False
) -> None:
    """Raise DataError for fields of which another format can be made, and not the job's.

    If the `first` record settled the format, also for a record of which one would rather make another one.
    """
    shape = shape_of(there, names, spec.text_field)
    if shape is None or shape is spec.format:
        return
    is_possible = _has(there, _own(spec, names))
    if is_possible and (first is None or is_table):
        return
    if first is not None:
        raise mixed(Seen(place, shape), first)
    raise DataError(
        f"{place}: the fields are those of data.format {shape}, and the job's is {spec.format}",
        hint=f"set data.format: {shape}; or name the fields, see docs/data-formats.md",
    )


def mixed(other: Seen, first: Seen) -> DataError:
    """The error for two records of different formats."""
    return DataError(
        f"{other.place} is a record of {other.format}, {first.place} one of {first.format}: with data.format Auto all "
        "are of one",
        hint="set data.format, or train on them one after the other",
    )


def _has(there: Container[str], candidates: Iterable[str]) -> bool:
    return any(name in there for name in candidates)


def _own(spec: DataSpec, names: Names) -> tuple[str, ...]:
    """Of these a record of the job's format has one at least."""
    if spec.format is DataFormat.TEXT:
        return (spec.text_field,)
    answers = (*names.chosen, *names.rejected)
    return (
        answers if spec.format is DataFormat.PREFERENCE else (*names.prompt, *names.response, *names.messages, *answers)
    )
