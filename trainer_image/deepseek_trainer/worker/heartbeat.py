"""Notices that another node is gone.

A machine that vanishes closes no connection.  Its peers wait in a collective until that times out, half an hour later,
and torchrun's agents do not notice either.  So each agent writes beats into the rendezvous' store on node 0.  Node 0
reads them all, twice in the time of a beat, and writes down how long each node has been silent; the others read that
list.  So node 0 gets two requests a beat from each node, however many there are.
"""

import json
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # not in __all__, but documented

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.names import host_and_port

BEAT_S: Final = 5.0
SILENCE_S: Final = 30.0  # longer than a network hiccup, shorter than the node controller's patience (50 s)
LEAVE_S: Final = 5.0
LEFT: Final = "left"
ROUNDS: Final = 2  # of node 0, in the time of a beat
LOOKS: Final = 5  # at the clock, in the time of a beat: they cost no request


class Heartbeat:
    """Beats and listens from start() to leave(), in threads of its own.

    `on_silence` is called once, from one of these threads, with a sentence that names the silent node.  A peer is
    watched from its first beat on, and node 0 from the first answer of its store on.
    """

    def __init__(
        self,
        endpoint: str,
        prefix: str,
        index: int,
        num_nodes: int,
        on_silence: Callable[[str], None],
        *,
        beat_s: float = BEAT_S,
        silence_s: float = SILENCE_S,
    ) -> None:
        (self._host, self._port), self._index = host_and_port(endpoint), index
        self._keys = {i: f"{prefix}/beat/{i}" for i in range(num_nodes)}
        self._list = f"{prefix}/silent"
        self._on_silence, self._beat_s, self._silence_s = on_silence, beat_s, silence_s
        self._said: dict[int, str] = {}  # last beat of each peer; node 0 reads them
        self._heard: dict[int, float] = {}  # when each peer was last heard of [s]; those that have left are not in it
        self._answered: float | None = None  # when the store last answered [s]
        self._leaving = threading.Event()
        self._talk = threading.Thread(target=self._talking, daemon=True)

    def start(self) -> None:
        """Begin to beat and to listen.  Does nothing if that has begun, or there are no peers."""
        if self._talk.is_alive() or len(self._keys) == 1:
            return
        self._talk.start()
        # The store's client may wait for a dead server without end, so another thread watches the clock.
        threading.Thread(target=self._watching, daemon=True).start()

    def leave(self) -> None:
        """Announce to the other nodes that this one will be silent from now on, and is well."""
        self._leaving.set()
        if self._talk.is_alive():
            self._talk.join(LEAVE_S)

    def _watching(self) -> None:
        while not self._leaving.wait(self._beat_s / LOOKS):
            if silent := self._silent(time.monotonic()):
                self._on_silence(f"nothing heard of {silent} for {self._silence_s:.0f} s")
                return

    def _silent(self, now: float) -> str | None:
        if self._answered is not None and now - self._answered > self._silence_s:
            return "node 0"
        late = (i for i, heard in self._heard.copy().items() if now - heard > self._silence_s)
        return next((f"node {i}" for i in late), None)

    def _talking(self) -> None:
        store, beats = None, 0
        pause = self._beat_s / ROUNDS if self._index == 0 else self._beat_s
        while not self._leaving.wait(pause if beats else 0):
            beats += 1
            try:
                store = store or self._connected()
                self._exchange(store, str(beats))
                self._answered = time.monotonic()
            except (DistError, RuntimeError):
                store = None
        if store is not None:
            store.set(self._keys[self._index], LEFT)
            if self._index == 0:
                store.set(self._list, LEFT)

    def _connected(self) -> TCPStore:
        """A connection of our own: calls that block use the agent's."""
        patience = timedelta(seconds=max(1.0, self._silence_s / 4))
        store = TCPStore(self._host, self._port, is_master=False, wait_for_workers=False, timeout=patience)
        self._answered = time.monotonic()
        return store

    def _exchange(self, store: TCPStore, beat: str) -> None:
        if self._index == 0:
            self._collect(store)
            store.set(self._list, self._listed(beat))
        else:
            store.set(self._keys[self._index], beat)
            if 0 in self._said or store.check([self._list]):
                self._take_in(store.get(self._list).decode())

    def _collect(self, store: TCPStore) -> None:
        """Hear all peers.  A peer that has not come yet is asked for alone: a read waits until its keys are there."""
        for i, key in self._keys.items():
            if i != self._index and i not in self._said and store.check([key]):
                self._said[i] = ""
        peers = list(self._said)
        said = store.multi_get([self._keys[i] for i in peers]) if peers else []
        now = time.monotonic()
        for i, beat in zip(peers, (each.decode() for each in said), strict=True):
            if beat == LEFT:
                self._heard.pop(i, None)
            elif beat != self._said[i]:
                self._heard[i] = now
            self._said[i] = beat

    def _listed(self, beat: str) -> str:
        now = time.monotonic()
        return json_text({"round": beat, "silent": {i: round(now - heard, 3) for i, heard in self._heard.items()}})

    def _take_in(self, listed: str) -> None:
        """Hear of all peers from node 0, unless its list is the one that was read before."""
        if listed == LEFT:
            self._heard = {}
        elif listed != self._said.get(0):
            now = time.monotonic()
            silent = {int(i): seconds for i, seconds in json.loads(listed)["silent"].items()}
            self._heard = {0: now} | {i: now - seconds for i, seconds in silent.items() if i != self._index}
        self._said[0] = listed
