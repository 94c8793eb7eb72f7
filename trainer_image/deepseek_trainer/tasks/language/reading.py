"""How the files of a language job become records.

Errors name the place of a record and its fields, never its content.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.data.fields import Fields, encodable, kind, label_of, refuse_missing, refuse_twice
from deepseek_trainer.data.formats.readers import by_suffix
from deepseek_trainer.data.formats.unpacking import suffix_of
from deepseek_trainer.data.reading import Reader, Reading, Value
from deepseek_trainer.tasks.language.instruction import instruction
from deepseek_trainer.tasks.language.names import MUST_CONTAIN, Names
from deepseek_trainer.tasks.language.pairs import pair
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.refused import Known, refuse_in_record, refused
from deepseek_trainer.tasks.language.shape import Seen, refuse_other_shape


def reading(spec: DataSpec, first: Seen | None = None) -> Reading[Record]:
    """How the files of a language job become records.  `first`: what settled the format, if that was Auto."""
    records = _Records(spec, Names.of(spec), refused(spec), first)
    return Reading(readers(spec), records.columns, records.record, records.way_out)


def readers(spec: DataSpec) -> dict[str, Reader]:
    """Of the files that hold records of the job."""
    reads_texts = spec.format in (DataFormat.TEXT, DataFormat.AUTO)
    return by_suffix(spec.encoding, spec.text_field if reads_texts else None)


@dataclass(frozen=True, slots=True)
class _Records:
    """Makes records of the fields of one source."""

    spec: DataSpec
    names: Names
    refused: Mapping[str, Known]
    first: Seen | None = None
    passed_over: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # columns that are not read, by place of table

    def way_out(self, found: Sequence[Path]) -> str:
        is_text = self.spec.format is not DataFormat.TEXT and any(suffix_of(file).startswith(".txt") for file in found)
        return "data.format: Text reads .txt files" if is_text else "one JSON object per line in .jsonl files"

    def columns(self, names: list[str], place: str) -> list[str]:
        """The columns of a table that records are made of.

        Raises DataError if one that is needed is missing, or one is there twice.
        """
        refuse_other_shape(names, place, self.spec, self.names, self.first, is_table=True)
        for setting, candidates in self._needed(names):
            if not any(name in names for name in candidates):
                refuse_missing(candidates[0], names, place, setting)
        wanted = [name for name in self._known() if name in names]
        refuse_twice(wanted, names, place)
        self.passed_over[place] = tuple(name for name in names if name not in wanted)
        return wanted

    def record(self, value: Value, name: str, line: int) -> Record | None:
        """The record that `value` spells, found at `line` of the file `name`; None for an empty text.

        Raises DataError if a field is missing, of the wrong kind, or cannot be left out.
        """
        found = (
            {each: _without_nulls(inner) for each, inner in value.items()}
            if suffix_of(PurePath(name)).startswith(".parquet")
            else value
        )
        fields = Fields(found, f"{name}:{line}", self.spec.ignored_fields or ())
        refuse_other_shape(fields.there, fields.place, self.spec, self.names, self.first)
        if self.spec.balance_by:
            fields.read(self.spec.balance_by)
        refuse_in_record(fields, self.refused)
        record = self._record(fields, name, line)
        if record is None:
            return None
        label = label_of(value, self.spec.balance_by, record.place) if self.spec.balance_by else None
        return replace(record, label=label, unused=(*fields.unused(), *self.passed_over.get(name, ())))

    def _record(self, fields: Fields, name: str, line: int) -> Record | None:
        if self.spec.format is DataFormat.TEXT:
            text = fields.string(self.spec.text_field, "textField")
            return Record(None, text, name, line) if text.strip() else None
        if self.spec.format is DataFormat.PREFERENCE:
            question, chosen, rejected, tools = pair(fields, self.names)
            return Record(question, chosen, name, line, _must_contain(fields), rejected=rejected, tools=tools)
        question, answer, tools = instruction(fields, self.names)
        return Record(
            question,
            answer.content,
            name,
            line,
            _must_contain(fields),
            tools=tools,
            reasoning=answer.reasoning,
            tool_calls=answer.tool_calls,
        )

    def _needed(self, names: list[str]) -> Iterator[tuple[str, Sequence[str]]]:
        """What a record must have: the setting, and the names.  The answers of a pair may hold its prompt."""
        own, has_messages = self.names, any(name in names for name in self.names.messages)
        match self.spec.format:
            case DataFormat.TEXT:
                yield "textField", (self.spec.text_field,)
            case DataFormat.PREFERENCE:
                if not has_messages:  # which may end with the chosen one
                    yield "chosenField", own.chosen
                yield "rejectedField", own.rejected
            case _ if not has_messages:
                yield "promptField", own.prompt
                yield "responseField", own.response
        if self.spec.balance_by:
            yield "balanceBy", (self.spec.balance_by,)

    def _known(self) -> list[str]:
        """The fields that are used, or refused."""
        is_text = self.spec.format is DataFormat.TEXT
        own = (self.spec.text_field,) if is_text else (*self.names.of_records(), *self.names.of_shapes())
        label = (self.spec.balance_by,) if self.spec.balance_by else ()
        known = dict.fromkeys((*own, *label, *self.refused))
        return [name for name in known if name not in (self.spec.ignored_fields or ())]


def _without_nulls(value: Any) -> Any:
    """`value` without null fields of the objects in it: in a table every object has the fields of all."""
    if isinstance(value, dict):
        return {name: _without_nulls(each) for name, each in value.items() if each is not None}
    return [*map(_without_nulls, value)] if isinstance(value, list) else value


def _must_contain(fields: Fields) -> tuple[str, ...]:
    wanted = fields.read(MUST_CONTAIN) or []
    items = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(items, list):
        raise DataError(
            f"{fields.place}: field {shown(MUST_CONTAIN)} must be a string or a list of strings, this is {kind(wanted)}"
        )
    return tuple(encodable(item, MUST_CONTAIN, fields.place) for item in items)
