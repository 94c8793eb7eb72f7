"""Shows how far a long reading is: a bar on a terminal, nothing anywhere else."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from deepseek_trainer.storage.streams import Advance, unwatched


@contextmanager
def bar(what: str, total_bytes: int) -> Iterator[Advance]:
    """A bar of `total_bytes`, and what advances it, from any thread; the bar is gone after the block."""
    if not sys.stdout.isatty():
        yield unwatched
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    times, errors_here = (TransferSpeedColumn(), TimeRemainingColumn()), sys.stderr.isatty()
    with Progress(*columns, *times, transient=True, redirect_stderr=errors_here) as progress:
        task = progress.add_task(what, total=total_bytes)
        yield lambda size: progress.advance(task, size)
