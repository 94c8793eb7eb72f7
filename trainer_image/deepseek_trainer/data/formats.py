"""Reads files as raw records: JSON lines, CSV, Parquet and whole texts.

A file is read as a stream, and a record is parsed when it is asked for, so that a bad one does not affect the next.
"""

import csv
import errno
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, NoReturn, Self, TextIO

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import first_line, one_line
from deepseek_trainer.data.fields import kind
from deepseek_trainer.data.reading import Columns, Load, Reader, Value
from deepseek_trainer.storage.opening import opened

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

_NOT_READABLE: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
)
_BATCH_ROWS: Final = 256  # of a Parquet file, in memory at once
MAX_LINE: Final = 64 << 20  # [bytes] of a line of JSON; [characters] of a CSV record
MAX_TEXT: Final = 256 << 20  # [bytes] of a file that is one record, and of a row of a Parquet file
_SHORTER: Final = "cut it into several records, or set data.onBadRecord: Skip"


def read(reader: Reader, file: Path, name: str, columns: Columns) -> Iterator[tuple[int, Load]]:
    """Each record of a file, with the line at which it begins, or the row in Parquet; both count from 1.

    Raises DataError if the file, or the rest of it, cannot be read.
    """
    with readable(name):
        yield from reader(file, name, columns)


@contextmanager
def readable(name: str, way_out: str = ", or set data.onBadRecord: Skip") -> Iterator[None]:
    """Raise DataError in place of an OSError that says that `name` cannot be opened.  A bad volume's errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_READABLE:
            raise
        raise DataError(
            f"{name} cannot be read: {os.strerror(error.errno).lower()}",
            hint=f"let the trainer's user read it, or take it away{way_out}",
        ) from error


def whole_text(field: str) -> Reader:
    """A reader of files that are one record each, with the whole text in `field`."""

    def text(file: Path, name: str, _: Columns) -> Iterator[tuple[int, Load]]:
        def load() -> Value:
            with readable(name), opened(file, refusal=DataError) as stream:
                content = stream.read(MAX_TEXT + 1)
            if len(content) > MAX_TEXT:
                raise _too_long(name, MAX_TEXT)
            return {field: _decoded(content, name)}

        yield 1, load

    return text


def jsonl(file: Path, name: str, _: Columns) -> Iterator[tuple[int, Load]]:
    with opened(file, refusal=DataError) as stream:
        for number, line in enumerate(_lines(stream), 1):
            place = f"{name}:{number}"
            if line is None:
                yield number, partial(_refuse, _too_long(place, MAX_LINE))
            else:
                yield number, partial(_object, line.rstrip(b"\r\n"), place)


def _lines(stream: BinaryIO) -> Iterator[bytes | None]:
    """Each line; None for one that is too long, which never is in memory as a whole."""
    while line := stream.readline(MAX_LINE + 1):
        if is_too_long := len(line) > MAX_LINE:
            while line and not line.endswith(b"\n"):
                line = stream.readline(MAX_LINE)
        yield None if is_too_long else line


def _too_long(place: str, most: int) -> DataError:
    return DataError(f"{place}: longer than {most >> 20} MiB, the most of one record", hint=_SHORTER)


def _decoded(raw: bytes, place: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: byte {error.start + 1} is not UTF-8", hint="convert the file to UTF-8") from None


def _object(raw: bytes, place: str) -> Value | None:
    line = _decoded(raw, place)
    if not line.strip():
        return None
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        what = one_line(error.msg[0].lower() + error.msg[1:])
        raise DataError(f"{place}:{error.colno}: not JSON: {what}", hint="each line is one JSON object") from None
    except (ValueError, RecursionError):
        raise DataError(f"{place}: JSON with a number or a nesting beyond any limit") from None
    if not isinstance(value, dict):
        raise DataError(f"{place}: a record must be a JSON object, this is {kind(value)}")
    return value


def csv_table(file: Path, name: str, columns: Columns) -> Iterator[tuple[int, Load]]:
    """RFC 4180 with a header: a quoted field may hold line ends, and quotes that are doubled."""
    csv.field_size_limit(MAX_LINE)  # for the whole process; the default, 128 KiB, is less than a long text
    raw = opened(file, refusal=DataError)
    with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        lines = _CsvLines(stream, name)
        reader = csv.reader(lines, strict=True)
        header = _header(reader, name, columns)
        while header:
            number = reader.line_num + 1
            lines.begin(number)
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, partial(_refuse, _not_csv(f"{name}:{number}", error))
                continue
            if cells:
                yield number, partial(_cells, header, cells, f"{name}:{number}")


class _CsvLines:
    """The lines of a table for csv.reader, which asks for them until a record is whole.

    Raises DataError where that takes too many: nobody can tell where the next record begins.
    """

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name, self._number, self._taken = stream, name, 1, 0

    def begin(self, number: int) -> None:
        """A new record begins in the line of this number."""
        self._number, self._taken = number, 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> str:
        line = self._stream.readline(MAX_LINE + 1)
        self._taken += len(line)
        if self._taken > MAX_LINE:
            raise _too_long(f"{self._name}:{self._number}", MAX_LINE)
        if not line:
            raise StopIteration
        return line


def _header(reader: Any, name: str, columns: Columns) -> list[str]:
    """The names of the columns; none if the file is empty."""
    try:
        header: list[str] = next(reader, [])
    except csv.Error as error:
        raise _not_csv(f"{name}:1", error) from None
    if header:
        _refuse_undecodable(header, f"{name}:1")
        columns(header, f"{name}:1")
    return header


def _cells(header: list[str], cells: list[str], place: str) -> Value:
    if len(cells) != len(header):
        raise DataError(
            f"{place}: {len(cells)} fields where the header names {len(header)}",
            hint='a field with a comma, a quote or a line end stands in quotes: "..."',
        )
    _refuse_undecodable(cells, place)
    return dict(zip(header, cells, strict=True))


def _refuse_undecodable(cells: list[str], place: str) -> None:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:  # `surrogateescape` put half a surrogate pair where a byte was not UTF-8
        raise DataError(f"{place}: not UTF-8", hint="convert the file to UTF-8") from None


def _not_csv(place: str, error: csv.Error) -> DataError:
    return DataError(
        f"{place}: not CSV: {first_line(error)}", hint='RFC 4180: "..." around a field, "" for a quote in it'
    )


def parquet_table(file: Path, name: str, columns: Columns) -> Iterator[tuple[int, Load]]:
    import pyarrow as pa  # noqa: PLC0415 memory that only the preparation of tables needs

    row = 0
    try:
        for batch in _batches(file, name, columns):
            for i in range(batch.num_rows):
                row += 1
                yield row, partial(_row, batch, i, f"{name}:{row}")
    except (pa.ArrowException, ValueError, LookupError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the volume's fault, not the file's
        after = f" after row {row}" if row else ""
        raise DataError(f"{name}: damaged, or not a Parquet file{after}", hint="copy or write the file again") from None


def _batches(file: Path, name: str, columns: Columns) -> Iterator["RecordBatch"]:
    """The rows, with only the columns that are needed.

    One row group is read at a time: asked for all groups, pyarrow 26 keeps what it has read to the end of the file.
    """
    from pyarrow.parquet import ParquetFile  # noqa: PLC0415

    with opened(file, refusal=DataError) as stream, ParquetFile(stream, page_checksum_verification=True) as table:
        wanted = columns(table.schema_arrow.names, name)
        for group in range(table.num_row_groups):
            rows = _rows_at_once(table, group, wanted, name)
            yield from table.iter_batches(rows, row_groups=[group], columns=wanted)


def _rows_at_once(table: "ParquetFile", number: int, wanted: list[str], name: str) -> int:
    """So many that they take not much more memory than one may.  Raises DataError where their mean is too large.

    A group says how large it is with all its columns.  Only where that is too much are the columns asked: a damaged
    description of one ends the process (pyarrow 26: ParquetException in RowGroupMetaData.column), not so while reading.
    """
    group, schema = table.metadata.row_group(number), table.schema
    mean: int = group.total_byte_size // max(group.num_rows, 1)
    if mean > MAX_TEXT:
        needed = [i for i in range(group.num_columns) if schema.column(i).path.partition(".")[0] in wanted]
        mean = sum(group.column(i).total_uncompressed_size for i in needed) // max(group.num_rows, 1)
    if mean > MAX_TEXT:
        raise _too_long(f"{name}: a row", MAX_TEXT)
    return max(1, min(_BATCH_ROWS, MAX_TEXT // max(mean, 1)))


def _row(batch: "RecordBatch", i: int, place: str) -> Value:
    import pyarrow as pa  # noqa: PLC0415

    row = batch.slice(i, 1)
    if row.nbytes > MAX_TEXT:
        raise _too_long(place, MAX_TEXT)
    try:
        value: Value = row.to_pylist()[0]
    except UnicodeDecodeError:
        raise DataError(f"{place}: not UTF-8", hint="write the file again with text columns in UTF-8") from None
    except (ValueError, OverflowError, LookupError, pa.ArrowException):  # such as a date after the year 9999
        raise DataError(f"{place}: a value that Python cannot hold", hint="write such columns as strings") from None
    return value


def _refuse(error: DataError) -> NoReturn:
    raise error
