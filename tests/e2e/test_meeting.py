"""Real agents that wait for machines of other nodes: before all were there once, waiting is no failure."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_trainer.worker.scratch import Scratch
from support.builders.worker import agent_with, variables, write_config

LIMIT_S = 12  # of torchrun's rendezvous
RAN = 'import os; open(os.environ["DSTJ_ROOT"] + "/ran-" + os.environ["RANK"], "w")'


class Nodes:
    """Agents of one attempt, each in a pod of its own, over one volume."""

    def __init__(self, root: Path, count: int) -> None:
        write_config(root, nodes=count)
        self.root, self._environ = root, variables(root)
        self.agents: dict[int, subprocess.Popen[bytes]] = {}

    def place(self, index: int) -> None:
        own = {
            "JOB_COMPLETION_INDEX": str(index),
            "DSTJ_NODE_ADDRESS": f"127.0.0.{index + 1}",
            "DSTJ_SCRATCH": str(self.root / f"scratch-{index}"),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        with self.log(index).open("wb") as log:
            self.agents[index] = subprocess.Popen(self._command, env=os.environ | self._environ | own, stderr=log)

    def log(self, index: int) -> Path:
        return self.root / f"log-{index}"

    def wait_for(self, index: int, text: str) -> None:
        while text not in self.log(index).read_text():
            assert self.agents[index].poll() is None, self.log(index).read_text()
            time.sleep(0.1)

    @property
    def _command(self) -> list[str]:
        return agent_with(RAN, JOIN_TIMEOUT_S=LIMIT_S)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path, 3)
    yield nodes
    for agent in nodes.agents.values():
        agent.kill()
        agent.wait()


def test_node_0_waits_for_machines_without_limit_and_says_for_how_many(nodes: Nodes):
    nodes.place(0)
    nodes.wait_for(0, "waiting for 2 of 3 nodes: 1, 2\n")
    nodes.place(2)
    nodes.wait_for(0, "waiting for 1 of 3 nodes: 1\n")
    time.sleep(LIMIT_S + 1)
    assert [agent.poll() for agent in nodes.agents.values()] == [None, None]
    nodes.place(1)
    assert [agent.wait(300) for agent in nodes.agents.values()] == [0, 0, 0]
    assert len(list(nodes.root.glob("ran-*"))) == 3


def test_other_nodes_wait_for_node_0(nodes: Nodes):
    nodes.place(1)
    nodes.place(2)
    time.sleep(LIMIT_S + 1)
    nodes.place(0)
    assert [agent.wait(300) for agent in nodes.agents.values()] == [0, 0, 0]
    assert not any(Scratch(nodes.root / f"scratch-{i}").failure.exists() for i in range(3))
