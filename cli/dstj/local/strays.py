"""Finds and ends the processes of a pod, by a variable in their environment.

A process id may have been given to another process since.  The initial environment stays with a process and with all
that it starts, whatever session or group they move to.
"""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

PATIENCE_S = 5.0  # SIGKILL takes effect at once, except in uninterruptible I/O


def members(name: str, value: str) -> list[int]:
    """The ids of this user's processes that were started with `name`=`value`, except for this process."""
    wanted = f"{name}={value}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or somebody else's
            if wanted in (directory / "environ").read_bytes().split(b"\0"):
                found.append(int(directory.name))
    return [pid for pid in found if pid != os.getpid()]


def end_all(name: str, value: str) -> int:
    """Kill all members, and those that they start meanwhile; returns how many there were at first."""
    deadline = time.monotonic() + PATIENCE_S
    first = len(members(name, value))
    while (pids := members(name, value)) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return first
