"""Turns the fields of a raw record into what is trained on.

Errors name the place of a record and its fields, never its content.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.data.fields import encodable, kind, label_of, refuse_missing, refuse_twice, some
from deepseek_trainer.data.formats.readers import readers
from deepseek_trainer.data.reading import Reading
from deepseek_trainer.tasks.language.conversation import (
    ASSISTANT,
    ROLES,
    USER,
    Conversation,
    Message,
    Question,
    as_text,
    out_of_order,
)

MUST_CONTAIN: Final = "mustContain"  # optional field of an Instruction record: what a right answer must say
_MESSAGE: Final = 'a message is {"role": "system", "user" or "assistant", "content": "..."}'
_ORDER: Final = "after an optional system message, user and assistant take turns, and the assistant has the last word"


@dataclass(frozen=True, slots=True)
class Record:
    """A record of Text, Instruction or Preference data.

    Text has no `prompt`.  In Instruction, `text` is the response, or a conversation's last turn.  In Preference, it is
    the chosen response, and `rejected` is the other one.
    """

    prompt: Question | None
    text: str
    source: str
    line: int  # in a table the row
    must_contain: tuple[str, ...] = ()
    label: str | None = None  # its class, with data.balanceBy
    rejected: str | None = None

    @property
    def place(self) -> str:
        return f"{self.source}:{self.line}"

    def texts(self) -> Iterator[str]:
        """All texts in it, in order."""
        if isinstance(self.prompt, tuple):
            yield from (message.content for message in self.prompt)
        elif self.prompt is not None:
            yield self.prompt
        yield self.text
        if self.rejected is not None:
            yield self.rejected

    def sides(self) -> "tuple[Record, Record]":
        """A Preference record as two Instruction records: the chosen answer, the rejected one."""
        assert self.rejected is not None, "of pairs only"
        return replace(self, rejected=None), replace(self, text=self.rejected, rejected=None)

    def size_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts())

    def key(self) -> int:
        """64 bits of a hash of the content: equal records have equal keys, wherever they stand."""
        rejected = "" if self.rejected is None else f"\0{self.rejected}"
        content = f"{as_text(self.prompt or '')}\0{self.text}{rejected}".encode()
        return int.from_bytes(hashlib.blake2b(content, digest_size=8, person=b"dstj record").digest(), "big")


def reading(spec: DataSpec) -> Reading[Record]:
    """How the files of a language job become records."""
    return Reading(
        readers(spec.encoding, spec.text_field if spec.format is DataFormat.TEXT else None),
        columns=partial(columns, spec=spec),
        record=partial(record_of, spec=spec),
        way_out=partial(_way_out, spec=spec),
    )


def _way_out(found: Sequence[Path], spec: DataSpec) -> str:
    is_text = spec.format is not DataFormat.TEXT and any(file.suffix == ".txt" for file in found)
    return "data.format: Text reads .txt files" if is_text else "one JSON object per line in .jsonl files"


def record_of(value: dict[str, Any], name: str, line: int, spec: DataSpec) -> Record | None:
    """The record that `value` spells, found at `line` of the file `name`; None for an empty text.

    Raises DataError if a field is missing or of the wrong kind.
    """
    record = _record(value, name, line, spec)
    if record is None or spec.balance_by is None:
        return record
    return replace(record, label=label_of(value, spec.balance_by, record.place))


def _record(value: dict[str, Any], name: str, line: int, spec: DataSpec) -> Record | None:
    place = f"{name}:{line}"
    if spec.format is DataFormat.TEXT:
        text = _string(value, spec.text_field, place, "textField")
        return Record(None, text, name, line) if text.strip() else None
    if spec.format is DataFormat.PREFERENCE:
        return _pair(value, name, line, spec)
    if (messages := value.get(spec.messages_field)) is not None:
        *before, last = _conversation(messages, spec.messages_field, place)
        return Record(tuple(before), last.content, name, line, _must_contain(value, place))
    prompt = _string(value, spec.prompt_field, place, "promptField")
    response = _string(value, spec.response_field, place, "responseField")
    for field, text in ((spec.prompt_field, prompt), (spec.response_field, response)):
        if not text.strip():
            raise DataError(
                f"{place}: field {shown(field)} is empty: an Instruction record needs a prompt and a response"
            )
    return Record(prompt, response, name, line, _must_contain(value, place))


def columns(names: list[str], place: str, spec: DataSpec) -> list[str]:
    """The columns of a table that records are made of.

    Raises DataError if one that is needed is missing, or one is there twice.
    """
    optional = [] if spec.format is DataFormat.TEXT else [spec.messages_field, MUST_CONTAIN]
    for setting, field in _needed(spec, has_messages=spec.messages_field in names).items():
        if field not in names:
            refuse_missing(field, names, place, setting)
    fields = [*_needed(spec, has_messages=False).values(), *optional]
    wanted = [name for name in dict.fromkeys(fields) if name in names]
    refuse_twice(wanted, names, place)
    return wanted


def _needed(spec: DataSpec, *, has_messages: bool) -> dict[str, str]:
    """Settings and names of the fields that a record must have."""
    label = {"balanceBy": spec.balance_by} if spec.balance_by else {}
    match spec.format:
        case DataFormat.TEXT:
            return {"textField": spec.text_field} | label
        case DataFormat.INSTRUCTION:
            asked, answers = {"promptField": spec.prompt_field, "responseField": spec.response_field}, {}
        case DataFormat.PREFERENCE:
            asked = {"promptField": spec.prompt_field}
            answers = {"chosenField": spec.chosen_field, "rejectedField": spec.rejected_field}
    return (answers if has_messages else asked | answers) | label


def _pair(value: dict[str, Any], name: str, line: int, spec: DataSpec) -> Record:
    place = f"{name}:{line}"
    prompt = _question(value, spec, place)
    chosen = _filled(value, spec.chosen_field, place, "chosenField")
    rejected = _filled(value, spec.rejected_field, place, "rejectedField")
    if chosen == rejected:
        raise DataError(
            f"{place}: fields {shown(spec.chosen_field)} and {shown(spec.rejected_field)} are equal: none is preferred",
            hint="leave such pairs out, or set data.onBadRecord: Skip",
        )
    return Record(prompt, chosen, name, line, _must_contain(value, place), rejected=rejected)


def _question(value: dict[str, Any], spec: DataSpec, place: str) -> Question:
    """The question to which both answers of a pair belong."""
    if (messages := value.get(spec.messages_field)) is None:
        return _filled(value, spec.prompt_field, place, "promptField")
    turns = _turns(messages, spec.messages_field, place)
    if turns[-1].role != USER:
        raise DataError(f"{place}: the last message is the {turns[-1].role}'s: before two answers the user speaks")
    _refuse_disorder((*turns, Message(ASSISTANT, "")), place)
    return turns


def _filled(value: dict[str, Any], field: str, place: str, setting: str) -> str:
    text = _string(value, field, place, setting)
    if not text.strip():
        raise DataError(f"{place}: field {shown(field)} is empty: a Preference record needs a prompt and two answers")
    return text


def _string(value: dict[str, Any], field: str, place: str, setting: str) -> str:
    if field not in value:
        refuse_missing(field, list(value), place, setting)
    return encodable(value[field], field, place)


def _must_contain(value: dict[str, Any], place: str) -> tuple[str, ...]:
    wanted = value.get(MUST_CONTAIN) or []
    items = [wanted] if isinstance(wanted, str) else wanted
    if not isinstance(items, list):
        raise DataError(
            f"{place}: field {shown(MUST_CONTAIN)} must be a string or a list of strings, this is {kind(wanted)}"
        )
    return tuple(encodable(item, MUST_CONTAIN, place) for item in items)


def _conversation(value: Any, field: str, place: str) -> Conversation:
    turns = _turns(value, field, place)
    _refuse_disorder(turns, place)
    return turns


def _refuse_disorder(turns: Conversation, place: str) -> None:
    if wrong := out_of_order(turns):
        raise DataError(f"{place}: {wrong}: {_ORDER}")


def _turns(value: Any, field: str, place: str) -> Conversation:
    if not isinstance(value, list):
        raise DataError(
            f"{place}: field {shown(field)} must be a list of messages, this is {kind(value)}", hint=_MESSAGE
        )
    if not value:
        raise DataError(f"{place}: field {shown(field)} is an empty list: a conversation has a question and an answer")
    return tuple(_message(each, f"{place}: message {i}") for i, each in enumerate(value, 1))


def _message(value: Any, place: str) -> Message:
    if not isinstance(value, dict):
        raise DataError(f"{place} must be an object, this is {kind(value)}", hint=_MESSAGE)
    for field in ("role", "content"):
        if field not in value:
            missing = f"{place}: no field {shown(field)}"
            names = some(list(value)) or "none"
            raise DataError(f"{missing} among {len(value)}", hint=_MESSAGE, full=f"{missing}; it has: {names}")
    content = encodable(value["content"], "content", place)
    if value["role"] not in ROLES:
        raise DataError(f"{place}: field 'role' must be one of {', '.join(ROLES)}", hint=_MESSAGE)
    if not content.strip():
        raise DataError(f"{place}: field 'content' is empty: each turn says something")
    return Message(value["role"], content)
