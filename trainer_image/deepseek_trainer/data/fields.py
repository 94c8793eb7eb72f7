"""What messages say about a record's fields: numbers and kinds, never the content; names where nothing is sealed."""

import difflib
from typing import Any, Final, NoReturn

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import MAX_SHOWN, first_of, one_line, shown

MAX_LABEL: Final = 256  # [characters], as evaluation.labels
_SHOWN: Final = 10  # names of files or fields in a message
_KINDS: Final = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


def some(names: list[str]) -> str:
    """The first ten names, each on one line and cut, and how many more there are."""
    return first_of(names, _SHOWN, lambda name: one_line(name, MAX_SHOWN))


def kind(value: Any) -> str:
    """What kind of value it is, for messages that must not show its content."""
    if value is None:
        return "null"
    return _KINDS.get(type(value), f"of type {type(value).__name__}")


def refuse_missing(field: str, names: list[str], place: str, setting: str) -> NoReturn:
    """Raise DataError for a record or table without `field`, which `data.<setting>` names."""
    near = difflib.get_close_matches(field, names, n=1)
    instead = f", did you mean {shown(near[0])}" if near else ""
    number = f", did you mean field {names.index(near[0]) + 1}" if near else ""
    missing = f"{place}: no field {shown(field)}"
    raise DataError(
        f"{missing} among {len(names)}{number}",
        hint=f"set data.{setting} to the field's name",
        full=f"{missing}{instead}; it has: {some(names) or 'none'}",
    )


def refuse_twice(wanted: list[str], names: list[str], place: str) -> None:
    """Raise DataError if a table has one of the `wanted` columns more than once."""
    if twice := [name for name in wanted if names.count(name) > 1]:
        raise DataError(f"{place}: more than one column is named {shown(twice[0])}", hint="rename all but one of them")


def encodable(text: Any, field: str, place: str) -> str:
    """`text`, if it is a string that UTF-8 can encode.  JSON can spell half a surrogate pair, which UTF-8 cannot."""
    if not isinstance(text, str):
        raise DataError(f"{place}: field {shown(field)} must be a string, this is {kind(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{place}: field {shown(field)} has half a surrogate pair (\\ud800 to \\udfff): not Unicode text"
        ) from None
    return text


def label_of(value: dict[str, Any], field: str, place: str, setting: str = "balanceBy") -> str:
    """The class in `field`, which `data.<setting>` names: a word, a number or a truth value.

    1 and "1" are the same, as a table cannot tell them apart.
    """
    if field not in value:
        refuse_missing(field, list(value), place, setting)
    found = value[field]
    if not isinstance(found, str | int):
        raise DataError(
            f"{place}: field {shown(field)} must be a string, a whole number or a boolean, this is {kind(found)}",
            hint=f"set data.{setting} to the field that holds a record's class",
        )
    text = encodable(found, field, place) if isinstance(found, str) else json_text(found)
    if not 0 < len(text) <= MAX_LABEL:
        raise DataError(
            f"{place}: field {shown(field)} has {len(text)} characters: a class has 1 to {MAX_LABEL}",
            hint=f"set data.{setting} to the field that holds a record's class",
        )
    return text
