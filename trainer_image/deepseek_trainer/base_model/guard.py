"""What is raised where a base model's files cannot be used: a refusal that nobody retries, whatever went wrong.

The files are the user's.  Libraries answer what they did not foresee with whatever they stumble over, and tokenizers
with a panic, which is no Exception.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from deepseek_trainer.contract.errors import ConfigError, JobError
from deepseek_trainer.contract.foreign import first_line, plainly, shown
from deepseek_trainer.worker.failure import is_of_machine

_MAX_PLACE: Final = 240  # [characters] of a path in a message
_MAX_CAUSE: Final = 200  # [characters]
_HINT: Final = "copy the model again from its own release, and compare `dstj doctor --digest` with its publisher's"
# What the directory says, not its disk: a link to nowhere or in a circle, or a socket.
_NO_FILE: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO, errno.EINVAL, None}
)


@contextmanager
def understood(what: object, *, quoting: bool = True) -> Iterator[None]:
    """Raise ConfigError in place of any error that the content of `what` leads to.  Errors of the machine pass.

    Without `quoting` only the kind of the error is told: libraries quote what they were given, and panics of Rust the
    text in which they looked.
    """
    try:
        yield
    except JobError:
        raise
    except OSError as error:
        if error.errno not in _NO_FILE:
            raise
        raise unusable(what, error, quoting=quoting) from error
    except Exception as error:
        if is_of_machine(error):
            raise
        raise unusable(what, error, quoting=quoting) from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise unusable(what, error, quoting=quoting) from None


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up.  Each has a class of this name of its own."""
    return type(error).__name__ == "PanicException"


def unusable(what: object, error: BaseException, *, quoting: bool = True) -> ConfigError:
    why = cause(error) if quoting else type(error).__name__
    return ConfigError(f"{place(what)} cannot be read: {why}", hint=_HINT)


def place(path: object) -> str:
    """A path for a message."""
    return plainly(str(path), _MAX_PLACE)


def cause(error: BaseException) -> str:
    """The kind of an error and its first line, which may quote the file."""
    return f"{type(error).__name__}: {shown(first_line(error), _MAX_CAUSE)}"
