"""What a trainer process asks of the kernel: to die with its parent, to leave no core file, to receive signals."""

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
    """Let the kernel kill this process as soon as its parent is gone, so that no rank is ever orphaned."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def forbid_core_dumps() -> None:
    """Leave no core file: it would hold keys and weights in the clear.

    Most distributions pipe core files to a program, and there the kernel ignores a limit of 0.  A limit of 1 holds for
    files and pipes (fs/coredump.c).  A limit of 0 that may not be raised stays; then the process makes itself
    undumpable, until its next exec.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    except ValueError:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0)


def shut_in(scratch: Path) -> None:
    """Let the libraries of this process and of its children download nothing, and write to `scratch` only.

    They read these variables when they are imported, so this must be called before.
    """
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HOME": str(scratch)}


def on_stop(leave: Callable[[], object]) -> None:
    """Call `leave` at SIGTERM or SIGINT, from a thread, so that no native call of the main thread delays it.

    Without a handler the kernel drops the SIGTERM that a container's first process gets (pid_namespaces(7)).
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
        """A flag that SIGTERM and SIGINT set, from now on."""
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
        """A flag that SIGUSR1 sets, from now on.  Without a handler that signal would end the process."""
        flag = cls()
        signal.signal(PROFILE_SIGNAL, flag._set)
        return flag

    def take(self) -> bool:
        """Whether a profile was asked for since the last call."""
        was_set, self._is_set = self._is_set, False
        return was_set

    def _set(self, _signal: int, _frame: FrameType | None) -> None:
        self._is_set = True


def ignore_profile() -> None:
    """Ignore SIGUSR1 here, and in the processes that are started from here until they handle it."""
    signal.signal(PROFILE_SIGNAL, signal.SIG_IGN)
