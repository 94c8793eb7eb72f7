"""A storm of kills: whatever instant SIGKILL picks, no checkpoint that was announced is lost."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vault_builders import a_store, weights_of

KILLS = 200
TESTS = Path(__file__).parents[1]
SAVE_FOR_EVER = """
import sys
from pathlib import Path
from deepseek_trainer.contract.retention import Retention
from vault_builders import a_state, a_store

store = a_store(Path(sys.argv[1]), sealed=sys.argv[2] == "sealed")
info = store.latest()
step = info.step if info else 0
print("ready", flush=True)
while True:
    step += 1
    store.save(step, a_state(step, floats=1_000_000), {"cursor": step})
    print(step, flush=True)
    store.prune(Retention(keep_last=2), best_step=1)
"""


@pytest.mark.parametrize("kind", ["sealed", "clear"])
def test_two_hundred_kills_lose_no_checkpoint_that_was_announced(tmp_path: Path, kind: str) -> None:
    chance = random.Random(2026)
    for _ in range(KILLS // 2):
        announced = announced_before_a_kill(tmp_path, kind, chance.uniform(0, 0.25))
        store = a_store(tmp_path, sealed=kind == "sealed")
        info = store.latest()
        assert not store.refused
        assert announced is None or (info is not None and info.step >= announced)
        if info:
            state, meta = store.load(info)
            assert weights_of(state) == meta["cursor"] == info.step


def announced_before_a_kill(work: Path, kind: str, after_s: float) -> int | None:
    """Run the saver, kill it `after_s` after it is ready; the last step that it said was saved."""
    command = [sys.executable, "-c", SAVE_FOR_EVER, str(work), kind]
    environ = os.environ | {"PYTHONPATH": str(TESTS)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as saver:
        assert saver.stdout is not None
        assert saver.stdout.readline() == "ready\n"
        time.sleep(after_s)
        saver.kill()
        lines = saver.stdout.read().splitlines()
    assert saver.returncode == -signal.SIGKILL
    return int(lines[-1]) if lines else None
