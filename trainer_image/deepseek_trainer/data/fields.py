"""What messages say about a record's fields: numbers and kinds, never the content; names where nothing is sealed."""

import difflib
from collections.abc import Container, Iterable, Iterator, Mapping
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


class Fields:
    """The fields of one record, or of an object in it, and which of them were read.

    null counts as absent, as a table has every column in every row; and so does what the job ignores.
    """

    __slots__ = ("_found", "_ignored", "_path", "_raw", "_read", "_within", "place")

    def __init__(self, raw: Mapping[str, Any], place: str, ignored: Container[str] = (), path: str = "") -> None:
        self.place, self._raw, self._ignored, self._path = place, raw, ignored, path
        self._found = {name: value for name, value in raw.items() if value is not None and name not in ignored}
        self._read: set[str] = set()
        self._within: list[Fields] = [self]

    @property
    def names(self) -> list[str]:
        """All that stand there, null or not."""
        return list(self._raw)

    @property
    def there(self) -> Container[str]:
        """The names of those that say something."""
        return {name for name, value in self._found.items() if not is_empty(value)}

    def within(self, raw: Mapping[str, Any], place: str, path: str) -> "Fields":
        """The fields of an object in this one, in a list that counts of unused fields call `path`."""
        inner = Fields(raw, place, self._ignored, f"{self._path}{path}[].")
        inner._within = self._within
        self._within.append(inner)
        return inner

    def read(self, name: str) -> Any:
        """The value of a field, which is used by that; None if it is absent."""
        self._read.add(name)
        return self._found.get(name)

    def first(self, names: Iterable[str]) -> str | None:
        """The first of `names` that says something, else the first that is there."""
        there = [name for name in names if name in self._found]
        return next((name for name in there if not is_empty(self._found[name])), there[0] if there else None)

    def string(self, name: str, setting: str) -> str:
        """The text in a field, which `data.<setting>` names.  Raises DataError if there is none."""
        if name not in self._raw or name in self._ignored:
            refuse_missing(name, self.names, self.place, setting)
        return encodable(self.read(name), name, self.place)

    def unread(self) -> dict[str, Any]:
        """What says something in this object itself, and was not read."""
        return {name: value for name, value in self._found.items() if name not in self._read and not is_empty(value)}

    def unused(self) -> tuple[str, ...]:
        """The names of all fields that were not read, also of the objects within."""
        return tuple(dict.fromkeys(name for each in self._within for name in each._left()))

    def _left(self) -> Iterator[str]:
        for name, value in self._raw.items():
            if value is not None and name not in self._read:
                yield f"{self._path}{name}"


def is_empty(value: Any) -> bool:
    """Whether a field says nothing: null, white space, an empty list or object."""
    return (
        value is None
        or (isinstance(value, str) and not value.strip())
        or (isinstance(value, list | dict) and not value)
    )
