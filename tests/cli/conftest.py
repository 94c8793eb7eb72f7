"""`dstj` in this process, on a state directory of the test's own."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import dstj.commands.run
import dstj.local.pod
from dstj.cli import main
from support.builders.cli import WORKER, StandIns
from support.fakes.job_api_server import FakeCluster, kubeconfig, serving

Dstj = Callable[..., int]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with `.dstj` in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DSTJ_HOME", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    return tmp_path


@pytest.fixture
def cluster(place: Path) -> Iterator[FakeCluster]:
    """A cluster that the kubeconfig leads to, in the namespace ml of the context test."""
    with serving() as cluster:
        kubeconfig(place, cluster.url, namespace="ml")
        yield cluster


@pytest.fixture
def run_dstj(place: Path, monkeypatch: pytest.MonkeyPatch) -> Dstj:
    """main() with stand-in workers: `run_dstj("run", file, worker="print(1)")`."""
    monkeypatch.setattr(dstj.commands.run, "LocalCluster", StandIns)
    monkeypatch.setattr(dstj.local.pod, "POLL_S", 0.005)

    def run(*arguments: object, worker: str = "") -> int:
        monkeypatch.setenv(WORKER, worker)
        return main([str(argument) for argument in arguments])

    return run
