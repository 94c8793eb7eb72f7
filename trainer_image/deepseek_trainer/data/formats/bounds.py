"""What a file of records may ask for, and how a bad one is refused."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from deepseek_trainer.contract.errors import DataError

MAX_LINE: Final = 64 << 20  # [bytes] of a record of JSON; [characters] of a CSV record
MAX_TEXT: Final = 256 << 20  # [bytes] of a file that is one record, and of a row of a Parquet file
_SHORTER: Final = "cut it into several records, or set data.onBadRecord: Skip"
_NOT_READABLE: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG}
)


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


def too_long(place: str, most: int) -> DataError:
    return DataError(f"{place}: longer than {most >> 20} MiB, the most of one record", hint=_SHORTER)


def refuse(error: DataError) -> NoReturn:
    """Raise `error`, as the load of a bad record."""
    raise error
