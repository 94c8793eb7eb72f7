"""A process that dies before its n-th file operation, for tests that try them all."""

import os
import signal
import sys
from collections.abc import Callable


def in_a_child(work: Callable[[], None]) -> int:
    """Do `work` in a forked process; its wait status."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    try:
        work()
    finally:
        os._exit(0)


def crash_at(event: int) -> None:
    """Kill this process just before it opens, renames, links, removes or makes a file for the `event`th time."""
    seen = 0

    def count(name: str, _arguments: object) -> None:
        nonlocal seen
        if name in ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"):
            seen += 1
            if seen > event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
