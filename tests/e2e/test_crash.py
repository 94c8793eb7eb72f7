"""A storm of kills: whatever instant SIGKILL picks, no checkpoint that was announced is lost."""

import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from support.builders.vault import a_store, weights_of
from support.faults.crashes import save_beside_for_ever, save_for_ever
from support.ranks.gloo import SERVER

Save = Callable[[Path, bool, Connection], None]


@pytest.mark.parametrize("save", [save_for_ever, save_beside_for_ever], ids=["waits", "beside"])
@pytest.mark.parametrize("kind", ["sealed", "clear"])
@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.long)])
def test_no_kill_of_many_loses_a_checkpoint_that_was_announced(
    tmp_path: Path, kills: int, kind: str, save: Save
) -> None:
    chance = random.Random(2026)
    for _ in range(kills):
        announced = announced_before_a_kill(save, tmp_path, kind, chance.uniform(0, 0.25))
        store = a_store(tmp_path, sealed=kind == "sealed")
        info = store.latest()
        assert not store.refused
        assert announced is None or (info is not None and info.step >= announced)
        if info:
            state, meta = store.load(info)
            assert weights_of(state) == meta["cursor"] == info.step


def announced_before_a_kill(save: Save, work: Path, kind: str, after_s: float) -> int | None:
    """Run a process that saves, kill it `after_s` after it is ready; the last step that it said was saved."""
    ours, theirs = SERVER.Pipe(duplex=False)
    saver = SERVER.Process(target=save, args=(work, kind == "sealed", theirs))
    saver.start()
    theirs.close()
    assert ours.recv() is None
    time.sleep(after_s)
    saver.kill()
    announced = None
    with suppress(EOFError):
        while True:
            announced = ours.recv()
    saver.join()
    assert saver.exitcode == -signal.SIGKILL
    return announced
