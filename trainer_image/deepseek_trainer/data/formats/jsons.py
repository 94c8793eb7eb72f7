"""Reads JSON: an object a line, a list of objects, or objects one after the other."""

import codecs
import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO, Final

from deepseek_trainer.contract.data import Encoding
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import one_line
from deepseek_trainer.data.fields import kind
from deepseek_trainer.data.formats.bounds import MAX_LINE, refuse, too_long
from deepseek_trainer.data.formats.encodings import as_utf8, decoded, undecodable
from deepseek_trainer.data.formats.unpacking import unpacked
from deepseek_trainer.data.reading import Columns, Load, Reader, Value

_PIECE: Final = 1 << 20  # [bytes] that a list is read by
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_BOM: Final = b"\xef\xbb\xbf"
_LINE_HINT: Final = "each line is one JSON object"
_LIST_HINT: Final = "the file is one list of JSON objects: [{...}, {...}]"


def json_file(encoding: Encoding) -> Reader:
    """A reader of JSON Lines, and of a list of objects, which the first byte tells.

    An object that fills more than its line is read as a list is, and so are those that follow it.
    """

    def read(file: Path, name: str, _: Columns) -> Iterator[tuple[int, Load]]:
        with as_utf8(unpacked(file, name), encoding) as stream:
            head = stream.peek(_PIECE)  # type: ignore[attr-defined]  # of BufferedReader
            yield from _values(stream, name, encoding) if _is_whole(head) else _lines(stream, name, encoding)

    return read


def _is_whole(head: bytes) -> bool:
    """Whether JSON begins with a list, or with an object that goes on in the next line."""
    text = head.removeprefix(_BOM).lstrip(b" \t\r\n")
    line, end, rest = text.partition(b"\n")
    goes_on = line.rstrip().endswith((b"{", b"[", b",")) and not rest.lstrip().startswith(b"{")
    return text.startswith(b"[") or bool(end and goes_on)


def _lines(stream: BinaryIO, name: str, encoding: Encoding) -> Iterator[tuple[int, Load]]:
    for number, line in enumerate(_cut(stream), 1):
        place = f"{name}:{number}"
        if line is None:
            yield number, partial(refuse, too_long(place, MAX_LINE))
        else:
            yield number, partial(_object, line.rstrip(b"\r\n"), place, encoding)


def _cut(stream: BinaryIO) -> Iterator[bytes | None]:
    """Each line; None for one that is too long, which never is in memory as a whole."""
    while line := stream.readline(MAX_LINE + 1):
        if is_too_long := len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
        yield None if is_too_long else line


def _object(raw: bytes, place: str, encoding: Encoding) -> Value | None:
    line = decoded(raw, place, encoding)
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise _not_json(f"{place}:{error.colno}", error, _LINE_HINT) from None
    except (ValueError, RecursionError):
        raise _beyond(place) from None
    return _record(value, place)


def _record(value: Any, place: str) -> Value:
    if not isinstance(value, dict):
        raise DataError(f"{place}: a record must be a JSON object, this is {kind(value)}")
    return value


def _not_json(place: str, error: json.JSONDecodeError, hint: str) -> DataError:
    return DataError(f"{place}: not JSON: {one_line(error.msg[0].lower() + error.msg[1:])}", hint=hint)


def _beyond(place: str) -> DataError:
    return DataError(f"{place}: JSON with a number or a nesting beyond any limit")


def _values(stream: BinaryIO, name: str, encoding: Encoding) -> Iterator[tuple[int, Load]]:
    """The values of a list, or those that follow each other, numbered from 1."""
    window = _Window(stream, name, encoding)
    is_list = window.took("[")
    if is_list and window.took("]"):
        return window.refuse_rest()
    for number in count(1):
        value = window.value(f"{name}:{number}")
        yield number, partial(_record, value, f"{name}:{number}")
        if is_list and window.took("]"):
            return window.refuse_rest()
        if is_list and not window.took(","):
            raise DataError(f"{name}: no comma or ] after record {number}", hint=_LIST_HINT)
        if not is_list and window.is_over():
            return None
    return None


class _Window:
    """The part of a stream in which the next value lies.  It grows until the value is whole."""

    def __init__(self, stream: BinaryIO, name: str, encoding: Encoding) -> None:
        self._stream, self._name, self._encoding = stream, name, encoding
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._text, self._at, self._has_all = "", 0, False

    def took(self, sign: str) -> bool:
        """Whether `sign` comes next, white space aside.  It is passed over."""
        if self.is_over() or self._text[self._at] != sign:
            return False
        self._at += 1
        return True

    def is_over(self) -> bool:
        """Whether only white space is left."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self._at < len(self._text) or self._has_all:
                return self._at >= len(self._text)
            self._grow()

    def value(self, place: str) -> Any:
        """The value that comes next.  Raises DataError where it is no JSON: nobody can tell where the next begins."""
        while True:
            self.is_over()
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
                if end < len(self._text) or self._has_all:  # otherwise a number may go on
                    self._at = end
                    return value
            except json.JSONDecodeError as error:
                if self._has_all:
                    raise _not_json(place, error, _LIST_HINT) from None
            except (ValueError, RecursionError):
                raise _beyond(place) from None
            if len(self._text) - self._at > MAX_LINE:
                raise too_long(place, MAX_LINE)
            self._grow()

    def refuse_rest(self) -> None:
        if not self.is_over():
            raise DataError(f"{self._name}: something follows the list of records", hint=_LIST_HINT)

    def _grow(self) -> None:
        """Read on: as much again as waits already, so that a long value is not parsed too often."""
        kept = self._text[self._at :]
        piece = self._stream.read(max(_PIECE, len(kept)))
        try:
            text = self._decoder.decode(piece, final=not piece)
        except UnicodeDecodeError:
            raise undecodable(piece, self._name, self._encoding) from None
        self._text, self._at, self._has_all = kept + text, 0, not piece


_DECODER: Final = json.JSONDecoder()
