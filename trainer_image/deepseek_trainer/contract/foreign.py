"""How text and documents of others are read and shown: files of users, volumes, other processes.

Nothing in them is trusted: a value that is not what it must be is None, and a document without limits is refused.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, TypeVar

T = TypeVar("T")

MAX_COUNT: Final = 2**53  # JSON numbers are exact up to here
MAX_SHOWN: Final = 60  # [characters] of a value in a message
MAX_NAME: Final = 256  # [characters] with its quotes
MAX_LINE: Final = 4096  # [characters] of a line in a log, on a terminal, in a status
_GAP: Final = " [...] "
_MAX_BITS: Final = 4096
_MAX_FILE_NAME: Final = 255  # [bytes], on Linux


def shown(value: object, limit: int = MAX_SHOWN) -> str:
    """`value` in quotes, on one line, without control characters, cut at `limit` characters."""
    text = ""
    for piece in _pieces(value, limit):
        text += piece
        if len(text) > limit:
            return f"{text[: limit - 3]}..."
    return text


def _pieces(value: object, limit: int) -> Iterator[str]:
    """The repr of `value` bit by bit: nobody pays for more of it than is shown, not even where it holds itself."""
    if isinstance(value, str | bytes):
        yield repr(value[: limit + 1])
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:  # repr raises ValueError
        yield f"a number of {value.bit_length()} bits"
    elif type(value) is dict:
        yield from _listed("{", ((key, ": ", inner) for key, inner in value.items()), "}", limit)
    elif type(value) is list:
        yield from _listed("[", ((inner,) for inner in value), "]", limit)
    else:
        yield repr(value)


def _listed(before: str, entries: Iterable[tuple[Any, ...]], after: str, limit: int) -> Iterator[str]:
    yield before
    for i, (first, *others) in enumerate(entries):
        yield ", " if i else ""
        yield from _pieces(first, limit)
        for separator, inner in zip(others[::2], others[1::2], strict=True):
            yield separator
            yield from _pieces(inner, limit)
    yield after


def named(name: object) -> str:
    """As `shown`, for the name of a file or of an object in a cluster, which is shown whole."""
    return shown(name, MAX_NAME)


def plainly(text: str, limit: int) -> str:
    """`text` as it is where it is printable and short, else as `shown`."""
    return text if text.isprintable() and len(text) <= limit else shown(text, limit)


def first_of(names: Sequence[str], most: int, show: Callable[[str], str] = shown) -> str:
    """The first `most` names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(show, names[:most])) + more


def one_line(text: str, limit: int = MAX_LINE) -> str:
    """`text` without control characters, which are escaped; of a longer one the beginning and the end.

    Unlike `shown` it is for whole messages: no quotes, and what it returns it leaves as it is.
    """
    text = _shortened(text, limit)
    if text.isprintable():
        return text
    return _shortened("".join(each if each.isprintable() else repr(each)[1:-1] for each in text), limit)


def first_line(error: BaseException, limit: int = 1024) -> str:
    """What an error of a library says first, on one line."""
    return one_line(str(error).partition("\n")[0], limit)


def _shortened(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    kept = limit - len(_GAP)
    return f"{text[: kept - kept // 2]}{_GAP}{text[len(text) - kept // 2 :]}"


def parsed(content: str | bytes | bytearray) -> Any:
    """The value of a JSON document.

    Raises ValueError where it is not JSON, which has no NaN and no infinity, and where it is nested more than 200 deep.
    """
    from pydantic_core import from_json  # noqa: PLC0415 time that only who parses such documents needs

    return from_json(content, allow_inf_nan=False)


def unambiguous(content: str | bytes | bytearray) -> Any:
    """As `parsed`, and ValueError for an object that has a key twice: of those each reader takes another one."""
    parsed(content)  # bounds the depth
    return json.loads(content, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return found


def json_object(content: str | bytes | bytearray) -> dict[str, Any] | None:
    """The JSON object that `content` holds."""
    try:
        value = json.loads(content)  # unlike `parsed` it takes half a letter, of which `legible` makes a "?"
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def legible(words: object) -> str:
    """`words` as lines that UTF-8 can hold and that are printable: JSON can say half of a letter (`\\ud800`)."""
    return "\n".join(one_line(line) for line in _whole_letters(str(words)).replace("\r\n", "\n").split("\n"))


def text(value: object) -> str | None:
    return one_line(_whole_letters(value)) if isinstance(value, str) else None


def _whole_letters(words: str) -> str:
    return words.encode(errors="replace").decode()


def count(value: object) -> int | None:
    """A number of things or seconds, rounded down."""
    known = number(value)
    return int(known) if known is not None and 0 <= known <= MAX_COUNT else None


def whole(value: object) -> int:
    """`value`, a whole number from 0 on.  Raises ValueError for anything else."""
    if type(value) is not int or not 0 <= value <= MAX_COUNT:
        raise ValueError(f"no whole number: {shown(value)}")
    return value


def word(value: object) -> str:
    """`value`, a string.  Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"no string: {shown(value)}")
    return value


def file_name(value: object) -> str:
    """`value`, the name of a file in a directory that is known.  Raises ValueError for anything else."""
    name = word(value)
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > _MAX_FILE_NAME:
        raise ValueError(f"no name of a file: {shown(name)}")
    return name


def optional(read: Callable[[Any], T], value: object) -> T | None:
    """What `read` makes of `value`, unless that is None."""
    return None if value is None else read(value)


def number(value: object) -> float | None:
    """A number that is neither NaN nor infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
