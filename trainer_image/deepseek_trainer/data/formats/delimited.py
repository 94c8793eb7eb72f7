"""Reads tables of text: a header, then a record a line, between commas, semicolons, tabs or bars."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, Self, TextIO

from deepseek_trainer.contract.data import Encoding
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import first_line
from deepseek_trainer.data.formats.bounds import MAX_LINE, refuse, too_long
from deepseek_trainer.data.formats.encodings import as_utf8, is_utf16, undecodable
from deepseek_trainer.data.formats.unpacking import unpacked
from deepseek_trainer.data.reading import Columns, Load, Reader, Value

COMMA: Final = ","
TAB: Final = "\t"
_DELIMITERS: Final = {COMMA: "comma", ";": "semicolon", TAB: "tab", "|": "bar"}


def delimited(usual: str, encoding: Encoding) -> Reader:
    """A reader of RFC 4180 with a header: a quoted field may hold line ends, and quotes that are doubled.

    Fields are cut at `usual`.  Where the header has none, they are cut at the sign of which it has most.
    """

    def table(file: Path, name: str, columns: Columns) -> Iterator[tuple[int, Load]]:
        csv.field_size_limit(MAX_LINE)  # for the whole process; the default, 128 KiB, is less than a long text
        raw = as_utf8(unpacked(file, name), encoding)
        with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            lines = _Lines(stream, name)
            delimiter = _delimiter(lines.first, usual)
            reader = csv.reader(lines, strict=True, delimiter=delimiter)
            header = _header(reader, name, columns, encoding)
            while header:
                number = reader.line_num + 1
                lines.begin(number)
                try:
                    cells = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    yield number, partial(refuse, _not_csv(f"{name}:{number}", error))
                    continue
                if cells:
                    yield number, partial(_cells, header, cells, f"{name}:{number}", _DELIMITERS[delimiter], encoding)

    return table


class _Lines:
    """The lines of a table for csv.reader, which asks for them until a record is whole.

    Raises DataError where that takes too many: nobody can tell where the next record begins.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._number, self._taken = stream, name, 1, 0
        self._waiting = [self._stream.readline(MAX_LINE + 1)]
        while self._waiting[-1].isspace():  # before the header
            self._waiting.append(self._stream.readline(MAX_LINE + 1))
        self.first = self._waiting[-1]

    def begin(self, number: int) -> None:
        """A new record begins in the line of this number."""
        self._number, self._taken = number, 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._waiting.pop(0) if self._waiting else self._stream.readline(MAX_LINE + 1)
        self._taken += len(line)
        if self._taken > MAX_LINE:
            raise too_long(f"{self._name}:{self._number}", MAX_LINE)
        if not line:
            raise StopIteration
        return line


def _delimiter(first: str, usual: str) -> str:
    """The sign that cuts the first line of a file."""
    if len(first) > MAX_LINE:  # which the reader refuses
        return usual
    found = {sign: len(next(csv.reader([first], delimiter=sign), [])) for sign in _DELIMITERS}
    return usual if found[usual] > 1 else max(found, key=lambda sign: (found[sign], sign == usual))


def _header(reader: Any, name: str, columns: Columns, encoding: Encoding) -> list[str]:
    """The names of the columns; none if the file is empty."""
    try:
        header: list[str] = next(filter(None, reader), [])
    except csv.Error as error:
        raise _not_csv(f"{name}:{reader.line_num}", error) from None
    if header:
        _refuse_undecodable(header, f"{name}:{reader.line_num}", encoding)
        columns(header, f"{name}:{reader.line_num}")
    return header


def _cells(header: list[str], cells: list[str], place: str, delimiter: str, encoding: Encoding) -> Value:
    if len(cells) != len(header):
        raise DataError(
            f"{place}: {len(cells)} fields where the header names {len(header)}",
            hint=f'a field with a {delimiter}, a quote or a line end stands in quotes: "..."',
        )
    _refuse_undecodable(cells, place, encoding)
    return dict(zip(header, cells, strict=True))


def _refuse_undecodable(cells: list[str], place: str, encoding: Encoding) -> None:
    text = "".join(cells)
    try:
        text.encode()
    except UnicodeEncodeError:  # `surrogateescape` put half a surrogate pair where a byte was not UTF-8
        raise undecodable(text.encode("utf-8", "surrogateescape"), place, encoding) from None
    if is_utf16(text.encode()):
        raise undecodable(text.encode(), place, encoding)


def _not_csv(place: str, error: csv.Error) -> DataError:
    return DataError(
        f"{place}: not CSV: {first_line(error)}", hint='RFC 4180: "..." around a field, "" for a quote in it'
    )
