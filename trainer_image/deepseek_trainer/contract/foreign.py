"""How a document of another process is read.  Nothing in it is trusted: a value that is not what it must be is None."""

import json
import sys
from typing import Any, Final

MAX_COUNT: Final = 2**53  # JSON numbers are exact up to here


def json_object(content: str | bytes) -> dict[str, Any] | None:
    """The JSON object that `content` holds."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def legible(words: object) -> str:
    """`words` as a text that UTF-8 can hold: JSON can say half of a letter (`\\ud800`)."""
    return str(words).encode(errors="replace").decode()


def text(value: object) -> str | None:
    return legible(value) if isinstance(value, str) else None


def count(value: object) -> int | None:
    """A number of things or seconds, rounded down."""
    known = number(value)
    return int(known) if known is not None and 0 <= known <= MAX_COUNT else None


def number(value: object) -> float | None:
    """A number that is neither NaN nor infinite."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None
