"""Reads Parquet tables."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.data.formats.bounds import MAX_TEXT, too_long
from deepseek_trainer.data.formats.unpacking import PACKED, unpacked
from deepseek_trainer.data.reading import Columns, Load, Value

if TYPE_CHECKING:
    from pyarrow import RecordBatch
    from pyarrow.parquet import ParquetFile

_BATCH_ROWS: Final = 256  # of a file, in memory at once


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

    with _seekable(file, name) as stream, ParquetFile(stream, page_checksum_verification=True) as table:
        wanted = columns(table.schema_arrow.names, name)
        for group in range(table.num_row_groups):
            rows = _rows_at_once(table, group, wanted, name)
            yield from table.iter_batches(rows, row_groups=[group], columns=wanted)


def _seekable(file: Path, name: str) -> BinaryIO:
    stream = unpacked(file, name)
    if file.suffix.lower() not in PACKED:
        return stream
    with stream:
        content = stream.read(MAX_TEXT + 1)
    if len(content) > MAX_TEXT:
        raise DataError(
            f"{name}: more than {MAX_TEXT >> 20} MiB of Parquet in a packed file, which is read in memory",
            hint="unpack it: Parquet compresses its columns itself",
        )
    return io.BytesIO(content)


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
        raise too_long(f"{name}: a row", MAX_TEXT)
    return max(1, min(_BATCH_ROWS, MAX_TEXT // max(mean, 1)))


def _row(batch: "RecordBatch", i: int, place: str) -> Value:
    import pyarrow as pa  # noqa: PLC0415

    row = batch.slice(i, 1)
    if row.nbytes > MAX_TEXT:
        raise too_long(place, MAX_TEXT)
    try:
        value: Value = row.to_pylist()[0]
    except UnicodeDecodeError:
        raise DataError(f"{place}: not UTF-8", hint="write the file again with text columns in UTF-8") from None
    except (ValueError, OverflowError, LookupError, pa.ArrowException):  # such as a date after the year 9999
        raise DataError(f"{place}: a value that Python cannot hold", hint="write such columns as strings") from None
    return value
