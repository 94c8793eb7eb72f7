"""Agents that hear of each other, over a real store."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from torch.distributed import TCPStore

from deepseek_trainer.worker import heartbeat
from deepseek_trainer.worker.heartbeat import Heartbeat

SLACK_S = 2.0  # of a busy machine
STORE = """
import sys, time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
print(store.port, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def store() -> TCPStore:
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


class Agent:
    def __init__(
        self, port: int, index: int, run: str, silence_s: float = 0.4, *, nodes: int = 2, beat_s: float = 0.02
    ) -> None:
        self.heard_nothing = threading.Event()
        self.said, self.at = "", 0.0
        endpoint = f"127.0.0.1:{port}"
        self.heartbeat = Heartbeat(endpoint, run, index, nodes, self._silence, beat_s=beat_s, silence_s=silence_s)
        self.heartbeat.start()

    def _silence(self, what: str) -> None:
        self.said, self.at = what, time.monotonic()
        self.heard_nothing.set()


def test_a_peer_that_falls_silent_is_noticed(store: TCPStore) -> None:
    first = Agent(store.port, 0, "silent")
    store.set("silent/beat/1", "7")
    assert first.heard_nothing.wait(10)
    first.heartbeat.leave()
    assert "node 1" in first.said


def test_a_peer_that_beats_or_has_not_come_yet_is_no_news(store: TCPStore) -> None:
    first, second = Agent(store.port, 0, "alive"), Agent(store.port, 1, "alive")
    alone = Agent(store.port, 0, "alone")
    assert not first.heard_nothing.wait(0.8)
    assert not second.heard_nothing.is_set()
    assert not alone.heard_nothing.is_set()
    for agent in (first, second, alone):
        agent.heartbeat.leave()


def test_a_peer_that_has_left_is_not_missed(store: TCPStore) -> None:
    first, second = Agent(store.port, 0, "left"), Agent(store.port, 1, "left")
    second.heartbeat.leave()
    assert not first.heard_nothing.wait(0.8)
    first.heartbeat.leave()


def test_all_peers_learn_within_the_same_time_which_node_fell_silent(store: TCPStore):
    agents = [Agent(store.port, i, "one of five", 1.0, nodes=5, beat_s=0.1) for i in range(5)]
    time.sleep(0.5)
    end_without_a_word(agents[3])
    silent_since = time.monotonic()
    for agent in (*agents[:3], agents[4]):
        assert agent.heard_nothing.wait(10)
        assert agent.said == "nothing heard of node 3 for 1 s"
        assert agent.at - silent_since < 1.0 + 3 * 0.1 + SLACK_S
    assert not agents[3].heard_nothing.is_set()
    for agent in agents:
        agent.heartbeat.leave()


def test_peers_know_who_fell_silent_when_node_0_gives_up_first(store: TCPStore):
    agents = [Agent(store.port, i, "gave up", 1.0, nodes=3, beat_s=0.1) for i in range(3)]
    time.sleep(0.5)
    end_without_a_word(agents[2])
    end_without_a_word(agents[0])
    assert agents[1].heard_nothing.wait(10)
    assert agents[1].said in ("nothing heard of node 2 for 1 s", "nothing heard of node 0 for 1 s")
    agents[1].heartbeat.leave()


@pytest.mark.parametrize("nodes", [4, 8, 16, 32])
def test_node_0_gets_at_most_three_requests_a_beat_for_each_node(
    store: TCPStore, nodes: int, monkeypatch: pytest.MonkeyPatch
):
    requests = counted(monkeypatch)
    beat_s, beats = 0.5, 4
    agents = [Agent(store.port, i, f"{nodes} nodes", 30.0, nodes=nodes, beat_s=beat_s) for i in range(nodes)]
    while not all(agent.heartbeat._answered for agent in agents):
        time.sleep(0.1)
    time.sleep(2 * beat_s)  # until node 0 has heard of all
    before = len(requests)
    time.sleep(beats * beat_s)
    in_a_beat = (len(requests) - before) / beats
    for agent in agents:
        agent.heartbeat.leave()
    assert nodes < in_a_beat <= 3 * nodes


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The requests of all agents from now on."""
    requests: list[str] = []

    def counting(name: str) -> Callable[..., Any]:
        original = getattr(TCPStore, name)
        return lambda self, *given: requests.append(name) or original(self, *given)

    methods = {name: counting(name) for name in ("set", "get", "check", "multi_get")}
    monkeypatch.setattr(heartbeat, "TCPStore", type("Counted", (TCPStore,), methods))
    return requests


def end_without_a_word(agent: Agent) -> None:
    """As a machine does that loses its power."""
    agent.heartbeat._leaving.wait = lambda _: threading.Event().wait()


def test_a_store_that_no_longer_answers_is_noticed() -> None:
    with a_store_elsewhere() as (port, freeze):
        agent = Agent(port, 1, "frozen", silence_s=0.5)
        wait_for_a_beat(port, "frozen/beat/1")
        freeze()
        assert agent.heard_nothing.wait(30)
    agent.heartbeat.leave()
    assert "node 0" in agent.said


@contextmanager
def a_store_elsewhere() -> Iterator[tuple[int, Callable[[], None]]]:
    """Port of a store in a process of its own, and what stops that process from answering."""
    process = subprocess.Popen([sys.executable, "-c", STORE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), lambda: os.kill(process.pid, signal.SIGSTOP)
    finally:
        process.kill()
        process.wait()


def wait_for_a_beat(port: int, key: str) -> None:
    TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False).wait([key])
