"""What a trainer process asks of the kernel: to die with its parent, to leave no core file, to hear signals."""

import ctypes
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final, Self

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # linux/prctl.h
STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
PROFILE_SIGNAL: Final = signal.SIGUSR1


class StopRequested(Exception):  # noqa: N818 not an error: the state is saved
    """All ranks agreed to stop, and the checkpoint of the current step is complete."""


def die_with_parent() -> None:
    """Have the kernel kill this process as soon as its parent is gone, so that no rank is ever orphaned."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def forbid_core_dumps() -> None:
    """A core file would hold keys and weights in the clear.

    A limit of 0 does not hold for what the kernel pipes to a program, as most distributions have it; 1 holds for both
    (fs/coredump.c).  Where a limit of 0 may not be raised, the process gives up being dumpable, which an exec undoes.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0)


def shut_in(scratch: Path) -> None:
    """Have the libraries of this process, and of those that it starts, download nothing and write to `scratch` only.

    Called before they are imported: they read it then.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HOME": str(scratch)}


def on_stop(leave: Callable[[], object]) -> None:
    """Have `leave` called at SIGTERM or SIGINT, in a thread: at once, even while a native call holds up this one.

    Without a handler the kernel drops the SIGTERM of a container's first process (pid_namespaces(7)).
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    threading.Thread(target=lambda: os.read(reading, 1) and leave(), daemon=True).start()
    for number in STOP_SIGNALS:
        signal.signal(number, lambda _signal, _frame: None)


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
        for number in STOP_SIGNALS:
            signal.signal(number, flag._set)
        return flag

    def _set(self, _signal: int, _frame: FrameType | None) -> None:
        self.since = self.since or time.monotonic()


class ProfileFlag:
    """Whether this process was asked for a profile."""

    def __init__(self) -> None:
        self._is_set = False

    @classmethod
    def on_signal(cls) -> Self:
        """A flag that SIGUSR1, which would end a process that does not expect it, sets from now on."""
        flag = cls()
        signal.signal(PROFILE_SIGNAL, flag._set)
        return flag

    def take(self) -> bool:
        """Whether it was asked since the last call."""
        was_set, self._is_set = self._is_set, False
        return was_set

    def _set(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_set = True


def ignore_profile() -> None:
    """Live through SIGUSR1, as do processes started from here until they expect it."""
    signal.signal(PROFILE_SIGNAL, signal.SIG_IGN)
