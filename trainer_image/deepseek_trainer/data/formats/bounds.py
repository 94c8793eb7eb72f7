"""What a file of records may ask for, and how a bad one is refused."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

from deepseek_trainer.base_model.guard import cause, is_panic
from deepseek_trainer.contract.errors import DataError, JobError
from deepseek_trainer.worker.failure import is_of_machine

MAX_LINE: Final = 64 << 20  # [bytes] of a record of JSON; [characters] of a CSV record
MAX_TEXT: Final = 256 << 20  # [bytes] of a file that is one record, and of a row of a Parquet file
_SHORTER: Final = "cut it into several records, or set data.onBadRecord: Skip"
_ODD: Final = "look at what is odd there, take it away or write it again, or set data.onBadRecord: Skip"
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


@contextmanager
def legible(place: str) -> Iterator[None]:
    """Raise DataError in place of any other error that what stands at `place` leads to.  Errors of the machine pass.

    Libraries answer what they did not foresee with whatever they stumble over.
    """
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        if is_of_machine(error) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise _illegible(place, error) from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise _illegible(place, error) from None


def _illegible(place: str, error: BaseException) -> DataError:
    what = f"{place} cannot be read"
    return DataError(f"{what}: {type(error).__name__}", hint=_ODD, full=f"{what}: {cause(error)}")


def too_long(place: str, most: int) -> DataError:
    return DataError(f"{place}: longer than {most >> 20} MiB, the most of one record", hint=_SHORTER)


def refuse(error: DataError) -> NoReturn:
    """Raise `error`, as the load of a bad record."""
    raise error
