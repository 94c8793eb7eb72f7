"""The launcher over the real agent, and over small commands in its place."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepseek_trainer import launch
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.launch import STOPPED, STOPPED_IDLE, Launcher
from deepseek_trainer.worker.failure import Failure
from deepseek_trainer.worker.process import ProfileFlag, StopFlag
from deepseek_trainer.worker.scratch import Scratch
from support.builders.worker import agent_with, variables, write_config

# A rank that ends when it is asked for a profile.
WAITS_FOR_PROFILE = """
import os, time
from pathlib import Path
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.worker.process import ProfileFlag
from deepseek_trainer.worker.scratch import Scratch
flag, paths, rank = ProfileFlag.on_signal(), Paths.from_env(), int(os.environ["RANK"])
Scratch(paths.scratch).record(rank)
while not flag.take():
    time.sleep(0.01)
(paths.root / f"profiled-{rank}").touch()
"""
LAUNCH = (sys.executable, "-m", "deepseek_trainer.launch")


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch")


def asked_to_stop() -> StopFlag:
    flag = StopFlag()
    flag.since = time.monotonic()
    return flag


def a_rank(scratch: Scratch, on_stop: str) -> list[str]:
    """An agent that is its own rank, and does `on_stop` at SIGTERM."""
    script = f"trap '{on_stop}' TERM; echo $$ > {scratch.directory}/ranks/0; while :; do sleep 0.02; done"
    return ["bash", "-c", script]


def test_a_config_of_a_newer_operator_ends_the_worker_with_code_64_and_names_the_field(tmp_path: Path):
    write_config(tmp_path, '{"turbo": true}')
    done = subprocess.run(LAUNCH, env=variables(tmp_path), check=False)
    message = json.loads((tmp_path / "termination").read_text())
    assert done.returncode == ExitCode.CONFIG
    assert "turbo: unknown field" in message["message"]
    assert message["reason"] == "Config"


def test_a_stop_while_the_nodes_still_wait_for_each_other_ends_the_worker_at_once_with_code_143(tmp_path: Path):
    write_config(tmp_path, nodes=2)
    environ = variables(tmp_path)
    worker = subprocess.Popen(LAUNCH, env=environ)
    address, port = environ["DSTJ_RENDEZVOUS"].split(":")
    with socket.socket() as peer:
        while peer.connect_ex((address, int(port))):
            assert worker.poll() is None
            time.sleep(0.02)
    limits = Path(f"/proc/{worker.pid}/limits").read_text()
    assert re.search(r"^Max core file size +1 +1 ", limits, re.MULTILINE)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=5) == ExitCode.STOPPED
    assert json.loads((tmp_path / "termination").read_text())["reason"] == "Stopped"


def test_a_stop_before_any_rank_does_not_wait_for_one(scratch: Scratch):
    started = time.monotonic()
    assert Launcher(scratch, asked_to_stop(), ["sleep", "60"]).run() == STOPPED_IDLE
    assert time.monotonic() - started < 5


def test_a_stop_while_the_ranks_are_dead_ends_without_them(scratch: Scratch, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "IDLE_STOP_S", 0.2)
    launcher = Launcher(scratch, asked_to_stop(), ["sleep", "60"])
    scratch.begin_round()
    dead = subprocess.Popen(["true"])
    dead.wait()
    (scratch.directory / "ranks" / "0").write_text(str(dead.pid))
    assert launcher.run() == STOPPED_IDLE


def test_agents_that_do_not_part_after_the_last_checkpoint_are_left_behind(
    scratch: Scratch, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(launch, "SAVED_STOP_S", 0.2)
    launcher = Launcher(scratch, asked_to_stop(), ["sleep", "60"])
    scratch.begin_round()
    scratch.stopped.touch()
    started = time.monotonic()
    assert launcher.run() == STOPPED
    assert time.monotonic() - started < 5


def test_a_stop_waits_as_long_as_a_rank_lives_and_tells_it_once(scratch: Scratch, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(launch, "IDLE_STOP_S", 0.5)
    told = scratch.directory / "told"
    on_stop = f"echo told >> {told}; sleep 0.8; touch {scratch.stopped}; exit 0"
    launcher = Launcher(scratch, asked_to_stop(), a_rank(scratch, on_stop))
    scratch.begin_round()
    assert launcher.run() == STOPPED
    assert told.read_text() == "told\n"


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_that_is_done_before_the_stop_reaches_it_has_succeeded(scratch: Scratch, begun: bool):
    launcher = Launcher(scratch, asked_to_stop(), ["true"])
    if begun:
        scratch.begin_round()
    assert launcher.run() is None


@pytest.mark.parametrize("stop", [StopFlag(), asked_to_stop()])
@pytest.mark.parametrize(
    "failure",
    [Failure(ExitCode.DATA, "Data", "train.jsonl is empty", 1), Failure(ExitCode.TRY_AGAIN, "Storage", "disk full", 1)],
)
def test_a_failure_that_no_restart_in_place_helps_ends_the_agent(scratch: Scratch, failure: Failure, stop: StopFlag):
    launcher = Launcher(scratch, stop, ["sleep", "60"])
    failure.save(scratch.failure)
    assert launcher.run() == failure


def test_what_an_earlier_worker_left_in_the_scratch_directory_is_not_this_ones(scratch: Scratch):
    Failure(ExitCode.DATA, "Data", "old").save(scratch.failure)
    scratch.begin_round()
    scratch.stopped.touch()
    assert Launcher(scratch, StopFlag(), ["true"]).run() is None


def test_an_agent_that_ends_without_a_word_is_told_by_its_exit(scratch: Scratch):
    failure = Launcher(scratch, StopFlag(), ["bash", "-c", "kill -9 $$"]).run()
    assert failure == Failure.of_exit(-signal.SIGKILL)


# A rank whose last checkpoint does not get through to the volume.
HANGS = """
import os, time
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.worker.process import StopFlag, die_with_parent
from deepseek_trainer.telemetry.progress import Progress, serve
from deepseek_trainer.worker.scratch import Scratch
die_with_parent()
stop, progress, paths = StopFlag.on_signal(), Progress(), Paths.from_env()
progress.update(step=230, lastCheckpoint={"step": 200})
serve(progress, os.environ["DSTJ_NODE_ADDRESS"], int(os.environ["DSTJ_METRICS_PORT"]))
Scratch(paths.scratch).record(0)
while not stop.is_set:
    time.sleep(0.01)
(paths.root / "stopping").touch()
os.mkfifo(paths.root / "hung")
os.open(paths.root / "hung", os.O_WRONLY)
"""


def test_a_stop_on_a_volume_that_hangs_ends_with_the_last_committed_step_before_the_kubelet_kills(tmp_path: Path):
    write_config(tmp_path)
    environ = variables(tmp_path) | {"DSTJ_METRICS_PORT": str(free_port())}
    code = "from functools import partial\nfrom deepseek_trainer import launch\nlaunch.LAST_WORDS_S = 148\n"
    code += f"launch.Launcher = partial(launch.Launcher, command={agent_with(HANGS)!r})\n"
    worker = subprocess.Popen([sys.executable, "-c", f"{code}launch.run(launch.main)"], env=environ)
    ranks = tmp_path / "scratch" / "ranks"
    while not any(file.read_text() for file in ranks.glob("*")):
        assert worker.poll() is None
        time.sleep(0.02)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == ExitCode.TRY_AGAIN
    assert (tmp_path / "stopping").exists()
    message = json.loads((tmp_path / "termination").read_text())
    assert (message["reason"], message["lastCheckpoint"]["step"], message["step"]) == ("StopTimeout", 200, 230)
    assert "not written after 2 s: that of step 200 is the state" in message["message"]


def test_a_stop_on_another_node_ends_in_time_without_an_answer(scratch: Scratch, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DSTJ_NODE_ADDRESS", "127.0.0.1")
    monkeypatch.setenv("DSTJ_METRICS_PORT", str(free_port()))
    launcher = Launcher(scratch, asked_to_stop(), a_rank(scratch, ":"), stop_s=1)
    scratch.begin_round()
    failure = launcher.run()
    assert failure is not None
    assert (failure.exit_code, failure.reason) == (ExitCode.TRY_AGAIN, "StopTimeout")
    assert "the one that they began with is the state" in failure.message


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def test_a_profile_asked_of_the_worker_reaches_every_rank(tmp_path: Path):
    """The real launcher and agent, over two ranks that wait for a SIGUSR1 each."""
    write_config(tmp_path, processes=2)
    code = "from deepseek_trainer.launch import *\n"
    code += f"Launcher(Scratch(Paths.from_env().scratch), StopFlag(), {agent_with(WAITS_FOR_PROFILE)!r}, "
    code += "ProfileFlag.on_signal()).run()"
    worker = subprocess.Popen([sys.executable, "-c", code], env=variables(tmp_path))
    ranks = tmp_path / "scratch" / "ranks"
    while sum(file.read_text() != "" for file in ranks.glob("*")) < 2:
        assert worker.poll() is None
        time.sleep(0.02)
    worker.send_signal(signal.SIGUSR1)
    assert worker.wait(timeout=30) == 0
    assert sorted(file.name for file in tmp_path.glob("profiled-*")) == ["profiled-0", "profiled-1"]


def test_a_profile_asked_before_there_are_ranks_is_no_harm(scratch: Scratch):
    profile = ProfileFlag()
    profile._set(0, None)
    assert Launcher(scratch, StopFlag(), ["sleep", "0.3"], profile).run() is None
