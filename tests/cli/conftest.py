"""`dstj` in this process, on a state directory of the test's own."""

from collections.abc import Callable
from pathlib import Path

import pytest

import dstj.local_pod
import dstj.run
from cli_builders import WORKER, StandIns
from dstj.cli import main

Dstj = Callable[..., int]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with `.dstj` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSTJ_HOME", raising=False)
    return tmp_path


@pytest.fixture
def run_dstj(place: Path, monkeypatch: pytest.MonkeyPatch) -> Dstj:
    """main() with stand-in workers: `run_dstj("run", file, worker="print(1)")`."""
    monkeypatch.setattr(dstj.run, "LocalCluster", StandIns)
    monkeypatch.setattr(dstj.local_pod, "POLL_S", 0.005)

    def run(*arguments: object, worker: str = "") -> int:
        monkeypatch.setenv(WORKER, worker)
        return main([str(argument) for argument in arguments])

    return run
