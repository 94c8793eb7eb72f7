"""The real torchrun agent under the real launcher, over ranks of a few lines."""

import os
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from deepseek_trainer.agent import _speak_for_the_silent
from deepseek_trainer.contract.errors import PeerGoneError
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.launch import Launcher
from deepseek_trainer.worker.failure import Failure
from deepseek_trainer.worker.process import StopFlag
from deepseek_trainer.worker.scratch import Scratch
from support.builders.data import RUN_ID
from support.builders.worker import agent_with, variables, write_config

# Rank 1 fails for good; rank 0 sees its peer go, and speaks last.
LONE_FAILURE = """
import os, sys, time
from deepseek_trainer.contract.errors import DataError, PeerGoneError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.worker.failure import Failure
from deepseek_trainer.worker.scratch import Scratch
rank, scratch = int(os.environ["RANK"]), Scratch(Paths.from_env().scratch)
scratch.record(rank)
while rank == 0 and not scratch.failure.exists():
    time.sleep(0.01)
error = PeerGoneError("connection closed by peer") if rank == 0 else DataError("row 7 is not a row")
failure = Failure.of(error, rank)
failure.save(scratch.failure)
sys.exit(failure.exit_code)
"""
# A rank that fails as it is told to: round by round, and in the last way ever after.
FAILING = """
import os, sys
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.worker.failure import Failure
from deepseek_trainer.worker.scratch import Scratch
scratch = Scratch(Paths.from_env().scratch)
restarts = scratch.record(0)
Failure(75, REASONS[min(restarts, len(REASONS) - 1)], "again", 0).save(scratch.failure)
sys.exit(75)
"""
# A real rank, which in place of a training tells what the kernel allows it and its agent.
LIMITS = """
import os, sys
from pathlib import Path
from types import SimpleNamespace

def tell(paths, *_):
    for name, pid in (("rank", os.getpid()), ("agent", os.getppid())):
        (paths.root / name).write_text(Path(f"/proc/{pid}/limits").read_text())

sys.modules["deepseek_trainer.run.run"] = SimpleNamespace(run=tell)
from deepseek_trainer import train
train.main()
"""
PEER_GONE = Failure.of(PeerGoneError("connection closed by peer"), 0)


def child_failed(**exits: tuple[int, int]) -> ChildFailedError:
    """`rank_<n>` ended with this code at this time [s]."""
    failures = {}
    for name, (code, at) in exits.items():
        rank = int(name.removeprefix("rank_"))
        failures[rank] = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file="none")
        failures[rank].timestamp = at
    return ChildFailedError("train", failures)


@pytest.fixture
def core_dumps() -> Iterator[None]:
    """Processes that are started from here may leave some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    if not hard:
        pytest.skip("no process of this machine may leave a core file")
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.mark.usefixtures("core_dumps")
def test_neither_agent_nor_rank_leaves_a_core_file(tmp_path: Path):
    write_config(tmp_path)
    assert not forbids_core_files(Path("/proc/self/limits"))
    assert subprocess.run(agent_with(LIMITS), env=variables(tmp_path), check=False).returncode == 0
    assert forbids_core_files(tmp_path / "rank")
    assert forbids_core_files(tmp_path / "agent")


def forbids_core_files(limits: Path) -> bool:
    (line,) = (line for line in limits.read_text().splitlines() if line.startswith("Max core file size"))
    return line.split()[4:6] == ["1", "1"]  # bytes: at 0 a core could go to a program that takes them


def test_a_lone_failure_that_no_restart_helps_is_not_hidden_by_its_peers_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_config(tmp_path, processes=2)
    for name, value in variables(tmp_path).items():
        monkeypatch.setenv(name, value)
    failure = Launcher(Scratch(tmp_path / "scratch"), StopFlag(), agent_with(LONE_FAILURE)).run()
    assert failure == Failure(ExitCode.DATA, "Data", "row 7 is not a row", 1)


@pytest.mark.parametrize(
    ("reasons", "rounds"),
    [
        pytest.param(["KeyError"], 4, id="failures"),
        pytest.param(["Adapting"] * 5 + ["KeyError"], 9, id="after all rungs"),
        pytest.param(["KeyError"] * 3 + ["Adapting"] * 2 + ["KeyError"], 6, id="between rungs"),
    ],
)
def test_a_pod_fails_after_three_restarts_and_rungs_that_are_climbed_do_not_count(
    tmp_path: Path, reasons: list[str], rounds: int
):
    write_config(tmp_path)  # microBatchSize 8 on one rank: five rungs
    done = subprocess.run(
        agent_with(f"REASONS = {reasons}\n{FAILING}"), env=os.environ | variables(tmp_path), check=False
    )
    assert done.returncode == ExitCode.TRY_AGAIN
    assert Scratch(tmp_path / "scratch").record(0) == rounds
    assert Failure.load(tmp_path / "scratch" / "failure.json").reason == "KeyError"


def test_a_node_that_was_there_and_does_not_join_ends_the_others_with_code_75_and_they_say_what_to_look_at(
    tmp_path: Path,
):
    write_config(tmp_path, nodes=2)
    environ = variables(tmp_path)
    agent = subprocess.Popen(agent_with("pass", JOIN_TIMEOUT_S=1), env=os.environ | environ)
    port = int(environ["DSTJ_RENDEZVOUS"].rpartition(":")[2])
    TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False).set(f"{RUN_ID}/here/1", "")
    assert agent.wait(300) == ExitCode.TRY_AGAIN
    failure = Failure.load(tmp_path / "scratch" / "failure.json")
    assert failure.reason == "PeerGone"
    assert failure.message.startswith("the 2 nodes do not meet: RendezvousTimeoutError (they wait 1 s) (hint: see the")


@pytest.mark.parametrize(
    ("told", "exits", "expected"),
    [
        pytest.param(
            PEER_GONE,
            {"rank_0": (75, 5), "rank_1": (-signal.SIGKILL, 5)},
            Failure.of_exit(-signal.SIGKILL, 1),
            id="killed",
        ),
        pytest.param(PEER_GONE, {"rank_0": (75, 5)}, PEER_GONE, id="a-rank-of-another-node"),
        pytest.param(
            PEER_GONE, {"rank_0": (75, 5), "rank_1": (-signal.SIGKILL, 35)}, PEER_GONE, id="killed-by-the-agent"
        ),
        pytest.param(
            Failure(75, "Storage", "disk full", 0),
            {"rank_0": (75, 5), "rank_1": (-signal.SIGABRT, 5)},
            Failure(75, "Storage", "disk full", 0),
            id="a-cause-is-known",
        ),
        pytest.param(None, {"rank_0": (3, 5)}, Failure.of_exit(3, 0), id="exited-without-a-word"),
    ],
)
def test_the_agent_speaks_only_for_ranks_that_could_not(
    tmp_path: Path, told: Failure | None, exits: dict[str, tuple[int, int]], expected: Failure
):
    scratch = Scratch(tmp_path)
    if told:
        told.save(scratch.failure)
    _speak_for_the_silent(child_failed(**exits), scratch)
    assert Failure.load(scratch.failure) == expected
