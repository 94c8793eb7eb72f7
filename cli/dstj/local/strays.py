"""Processes that belong to a pod, found by a variable in their environment.

A process id alone may have been given to somebody else since; the initial environment of a
process stays with it and with all it starts, whatever session or group they move to.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 5.0  # SIGKILL takes effect at once, except in uninterruptible I/O


def members(name: str, value: str) -> list[int]:
    """Process ids of this user's processes, without this one, that were started with `name`=`value`."""
    wanted = f"{name}={value}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if wanted in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return [pid for pid in found if pid != os.getpid()]


def end_all(name: str, value: str) -> int:
    """SIGKILL all members, and those that they start meanwhile; how many there were at first."""
    deadline = time.monotonic() + PATIENCE_S
    first = len(members(name, value))
    while (pids := members(name, value)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return first
