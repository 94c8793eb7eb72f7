"""Commands of the host, run and waited for."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class ClusterError(Exception):
    """The cluster cannot do what was asked; the message says what to look at."""


def say(text: str) -> None:
    sys.stderr.write(f"cluster: {text}\n")


def run(*command: str | Path, **options: Any) -> str:
    """Standard output of a command.  Raises ClusterError with its last words."""
    line = [str(word) for word in command]
    done: subprocess.CompletedProcess[str] = subprocess.run(
        line, check=False, text=True, capture_output=True, **options
    )
    if done.returncode:
        raise ClusterError(
            f"{' '.join(line)[:300]}: exit {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}"
        )
    return done.stdout


def run_shown(
    *command: str | Path, describe: Callable[[list[str]], str], every_s: float = 15.0, **options: Any
) -> None:
    """As `run`, for a command that takes minutes.  `describe` makes a line of what the command has said so far."""
    line, said, shown = [str(word) for word in command], list[str](), time.monotonic()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    with subprocess.Popen(line, **pipes, **options) as running:
        assert running.stdout
        for words in running.stdout:
            said.append(words.rstrip())
            if time.monotonic() >= shown + every_s:
                shown = time.monotonic()
                say(f"  {describe(said)}")
    if running.returncode:
        raise ClusterError(f"{' '.join(line)[:300]}: exit {running.returncode}: {os.linesep.join(said[-20:])[-2000:]}")


def succeeds(*command: str | Path) -> bool:
    return subprocess.run([str(word) for word in command], check=False, capture_output=True).returncode == 0


def wait_until(what: str, true: Callable[[], bool], seconds: float, every: float = 0.1) -> None:
    """Raises ClusterError when `true` has not come true in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise ClusterError(f"not in {seconds:.0f} s: {what}")
        time.sleep(every)
