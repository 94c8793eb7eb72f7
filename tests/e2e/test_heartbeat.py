"""Agents that hear of each other, over a real store."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch.distributed import TCPStore

from deepseek_trainer.worker.heartbeat import Heartbeat

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
    def __init__(self, port: int, index: int, run: str, silence_s: float = 0.4) -> None:
        self.heard_nothing = threading.Event()
        self.said = ""
        endpoint = f"127.0.0.1:{port}"
        self.heartbeat = Heartbeat(endpoint, run, index, 2, self._silence, beat_s=0.02, silence_s=silence_s)
        self.heartbeat.start()

    def _silence(self, what: str) -> None:
        self.said = what
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
