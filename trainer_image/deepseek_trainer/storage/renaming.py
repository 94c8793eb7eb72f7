"""How a file that was written beside its place gets its name where only one may: on every file system."""

import ctypes
import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from deepseek_trainer.contract.errors import TryAgainError

PARTIAL: Final = ".partial-"  # in the names of files that are being written; no other file has such a name
CLAIM_SECONDS = 10.0  # a claim is held for one rename; one that is older was left by a crash
_AT_FDCWD: Final = -100  # linux/fcntl.h
NOREPLACE: Final = 1  # linux/fs.h
EXCHANGE: Final = 2
_UNSUPPORTED: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


def put_new(partial: Path, path: Path) -> bool:
    """Give the file `partial` the name `path`; returns False, and changes nothing, where that exists.

    Of several who try at once exactly one gets True.  `partial` may keep its name as well.
    """
    for way in (_link, _rename):
        try:
            way(partial, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            return True
    return _renamed_by_claim(partial, path)


def _link(partial: Path, path: Path) -> None:
    path.hardlink_to(partial)


def _rename(partial: Path, path: Path) -> None:
    rename_with(NOREPLACE, partial, path)


def rename_with(flag: int, one: Path, other: Path) -> None:
    """Rename as Linux's renameat2 does with `flag`.  Raises OSError, also where the file system does not know it."""
    renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), flag):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))


def _renamed_by_claim(partial: Path, path: Path) -> bool:
    """Where the file system knows neither links nor renames that replace nothing: who makes the claim may rename."""
    claim = path.with_name(f"{path.name}{PARTIAL}claim")
    if not _made(claim, path):
        return False
    try:
        if is_new := not os.path.lexists(path):
            partial.rename(path)
        return is_new
    finally:
        with suppress(OSError):
            claim.unlink()


def _made(claim: Path, path: Path) -> bool:
    """Make the claim once nobody else holds it; returns False as soon as `path` exists."""
    deadline = time.monotonic() + CLAIM_SECONDS
    while not os.path.lexists(path):
        try:
            os.close(os.open(claim, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            if time.monotonic() > deadline:
                raise _stuck(claim, path) from None
            time.sleep(0.01)
        else:
            return True
    return False


def _stuck(claim: Path, path: Path) -> TryAgainError:
    return TryAgainError(
        f"{claim} has held up the making of {path.name} for {CLAIM_SECONDS:.0f} s",
        hint=f"a process that died may have left it: delete it if nobody is making {path.name}",
    )
