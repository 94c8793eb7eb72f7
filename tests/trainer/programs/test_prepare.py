"""The init container's entry point, as the first process of a PID namespace as in a container."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepseek_trainer.contract.names import ExitCode
from support.builders.worker import variables, write_config

AS_PID_1 = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child")
SIGTERM_BIT = 1 << 14  # in SigCgt of /proc/<pid>/status


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def hears_sigterm(pid: int) -> bool:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigCgt"], 16) & SIGTERM_BIT)


def core_limits(pid: int) -> list[str]:
    (line,) = (line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line)
    return line.split()[4:6]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def waiting_node(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Node 1 of a job whose node 0 never prepares anything: the outer process, and the pid of its PID 1."""
    if subprocess.run([*AS_PID_1, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a PID namespace")
    write_config(tmp_path, nodes=2)
    command = [*AS_PID_1, sys.executable, "-m", "deepseek_trainer.prepare"]
    outer = subprocess.Popen(command, env=variables(tmp_path, node=1))
    try:
        wait_until(lambda: children(outer.pid))
        yield outer, children(outer.pid)[0]
    finally:
        outer.kill()
        outer.wait()


def test_a_stop_ends_the_preparation_at_once_with_code_143(
    waiting_node: tuple[subprocess.Popen[bytes], int], tmp_path: Path
):
    outer, pid = waiting_node
    wait_until(lambda: hears_sigterm(pid))  # already while it imports: the kubelet asks only once
    assert core_limits(pid) == ["1", "1"]
    os.kill(pid, 15)
    assert outer.wait(timeout=5) == ExitCode.STOPPED
    message = json.loads((tmp_path / "termination").read_text())
    assert message["exitCode"] == ExitCode.STOPPED
    assert message["reason"] == "Stopped"
