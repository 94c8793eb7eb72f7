"""Volumes that this user may not read or write.

No retry helps.  The error names who asks, who owns, and the ways out.
"""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.names import CLAIMS_MOUNT, ENV_ROOT, Paths

DENIED: Final = frozenset({errno.EACCES, errno.EPERM})
_WAYS_OUT: Final = (
    "let that user write the work volume and read the others: by the pod's fsGroup, by a chown on the server or in a "
    "pod that runs as root, or with another storage class"
)

_HERE: Final = "chown or chmod it, so that this user may write what `dstj run` keeps and read the rest"


def denied(path: Path, error: OSError) -> ConfigError:
    """The error of a path that this user may not have."""
    problem = os.strerror(error.errno or 0).lower()
    return ConfigError(
        f"{path}: {problem} for {_user()}; {_owner(path)}", hint=_HERE if os.environ.get(ENV_ROOT) else _WAYS_OUT
    )


def denied_on_volume(error: BaseException, paths: Paths | None = None) -> ConfigError | None:
    """What an error means that denies a path on one of the job's volumes to this user; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in DENIED or not isinstance(error.filename, str | os.PathLike):
        return None
    paths, path = paths or Paths.from_env(), Path(error.filename)
    mounts = (paths.work, paths.at(CLAIMS_MOUNT))
    return denied(path, error) if any(path.is_relative_to(mount) for mount in mounts) else None


def refuse_unwritable(paths: Paths) -> None:
    """Raise ConfigError if this user cannot write to the work volume or a directory of it, or if one is a link."""
    directories = (paths.prepared, paths.checkpoints, paths.export, paths.logs)
    if links := [directory for directory in directories if directory.is_symlink()]:
        raise ConfigError(
            f"{links[0]} is a link", hint="on this volume nothing of the job is: what is written stays here"
        )
    for place in _existing(paths.work, *directories):
        if os.access(place, os.W_OK | os.X_OK, effective_ids=True):
            continue
        if os.statvfs(place).f_flag & os.ST_RDONLY:
            raise ConfigError(
                f"{place} is on a volume that is mounted read-only",
                hint="name a claim that can be written in checkpoint.volume; if it was not mounted so, see the kernel "
                "log of the machine",
            )
        raise denied(place, PermissionError(errno.EACCES, ""))


def _existing(*places: Path) -> Iterable[Path]:
    for place in places:
        try:
            if place.exists():
                yield place
        except OSError:  # its parent, which came before, may not be searched
            continue


def _user() -> str:
    groups = ", ".join(map(str, sorted({os.getegid(), *os.getgroups()})))
    return f"user {os.geteuid()} (groups {groups})"


def _owner(path: Path) -> str:
    """Whom `path` belongs to, or the nearest directory above it that can be seen."""
    for place in (path, *path.parents):
        try:
            found = place.stat()
        except OSError:
            continue
        return f"{place} belongs to {found.st_uid}:{found.st_gid}, mode {stat.S_IMODE(found.st_mode):04o}"
    return "its owner is not known"
