"""What a trainer process asks of the kernel: to die with its parent, to leave no core file, to hear a stop."""

import ctypes
import os
import resource
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Self

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LAST_PROGRESS = "progress.json"  # in the scratch directory of node 0, when the job is done


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent is gone, so that no rank is ever orphaned."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def forbid_core_dumps() -> None:
    """A core file would hold keys and weights in the clear."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class StopFlag:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.since: float | None = None  # time.monotonic() of the first request [s]

    @property
    def is_set(self) -> bool:
        return self.since is not None

    @classmethod
    def on_signal(cls) -> Self:
        """A flag that SIGTERM and SIGINT set from now on."""
        flag = cls()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, flag._set)
        return flag

    def _set(self, _signal: int, _frame: FrameType | None) -> None:
        self.since = self.since or time.monotonic()


class RankFiles:
    """Process ids of this node's ranks, one file each, by which the launcher reaches them."""

    def __init__(self, scratch: Path) -> None:
        self._directory = scratch / "ranks"

    def record(self, local_rank: int) -> int:
        """Record this process; how often there was one in its place before, in this pod.

        torchrun's own count leaves out restarts that another node's rank brought about.
        """
        self._directory.mkdir(parents=True, exist_ok=True)
        with self._directory.with_name(f"starts-{local_rank}").open("a") as starts:
            starts.write(".")
            restarts = starts.tell() - 1
        (self._directory / str(local_rank)).write_text(str(os.getpid()))
        return restarts

    def clear(self) -> None:
        for file in self._files():
            file.unlink()

    def pids(self) -> tuple[int, ...]:
        return tuple(int(text) for file in self._files() if (text := file.read_text()))

    def _files(self) -> tuple[Path, ...]:
        return tuple(self._directory.iterdir()) if self._directory.exists() else ()
