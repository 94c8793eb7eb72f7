"""Processes that die, before their n-th file operation or at any moment while they save, and disks that rot."""

import errno
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from deepseek_trainer.checkpoints.saver import Saver
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.worker.agreement import alone
from support.builders.vault import a_state, a_store


def damage(path: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def fill(directory: Path) -> None:
    """What a rank leaves that is killed when its part of a checkpoint has taken the last free page."""
    directory.mkdir()
    with suppress(OSError), (directory / "rank-00000.safetensors").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def bad_sector(patch: pytest.MonkeyPatch, *places: str, number: int = errno.EIO) -> None:
    """Let the kernel refuse to read the files with one of `places` in their path."""
    read = os.preadv

    def preadv(descriptor: int, *arguments: object) -> int:
        if any(place in str(Path(f"/proc/self/fd/{descriptor}").readlink()) for place in places):
            raise OSError(number, os.strerror(number))
        return read(descriptor, *arguments)  # type: ignore[arg-type]

    patch.setattr(os, "preadv", preadv)


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

    def heard(name: str, _arguments: object) -> None:
        nonlocal seen
        if name in ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"):
            seen += 1
            if seen > event:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(heard)


def crashes(start: Path, work: Callable[[Path, Callable[[], None]], None]) -> Iterator[Path]:
    """Copies of `start` beside it, each after `work` on it: killed before one file operation more, at last not at all.

    `work(copy, arm)` calls `arm` where the operations that are counted begin.
    """
    for event in count():
        place = start.with_name(str(event))
        shutil.copytree(start, place)
        status = in_a_child(partial(work, place, partial(crash_at, event)))
        yield place
        if not os.WIFSIGNALED(status):
            return


def save_for_ever(work: Path, sealed: bool, told: Connection) -> None:
    """Commit one checkpoint after the other; tell None when the first begins, then each step when it is saved."""
    store, step = _begun(work, sealed, told)
    while True:
        step += 1
        store.save(step, a_state(step, floats=1_000_000), {"cursor": step})
        told.send(step)
        store.prune(Retention(keep_last=2), best_step=1)


def save_beside_for_ever(work: Path, sealed: bool, told: Connection) -> None:
    """The same by a thread, while the weights that were copied change."""
    store, step = _begun(work, sealed, told)
    saver = Saver(store, Retention(keep_last=2), alone)
    while True:
        step += 1
        state = a_state(step, floats=1_000_000)
        saver.save(step, state, {"cursor": step}, best_step=1)
        saver.before_change()
        state["model"]["layers.0.weight"].fill_(-1.0)
        for saved in saver.finished():
            told.send(saved.info.step)


def _begun(work: Path, sealed: bool, told: Connection) -> tuple[CheckpointStore, int]:
    store = a_store(work, sealed=sealed)
    info = store.latest()
    told.send(None)
    return store, info.step if info else 0
