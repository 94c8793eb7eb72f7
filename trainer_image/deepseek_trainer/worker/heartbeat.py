"""Notices that another node is gone.

A machine that vanishes closes no connection.  Its peers wait in a collective until that times out, half an hour later,
and torchrun's agents do not notice either.  So each agent writes beats into the rendezvous' store on node 0 and looks
for the beats of the others.
"""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # not in __all__, but documented

BEAT_S: Final = 5.0
SILENCE_S: Final = 30.0  # longer than a network hiccup, shorter than the node controller's patience (50 s)
LEAVE_S: Final = 5.0
LEFT: Final = "left"


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
        self._host, _, port = endpoint.rpartition(":")
        self._port = int(port)
        self._own = f"{prefix}/beat/{index}"
        self._peers = {f"{prefix}/beat/{i}": f"node {i}" for i in range(num_nodes) if i != index}
        self._on_silence, self._beat_s, self._silence_s = on_silence, beat_s, silence_s
        self._heard: dict[str, tuple[str, float]] = {}  # last beat by key, and when it was first read [s]
        self._answered: float | None = None  # when the store last answered [s]
        self._leaving = threading.Event()
        self._talk = threading.Thread(target=self._talking, daemon=True)

    def start(self) -> None:
        """Begin to beat and to listen.  Does nothing if that has begun, or there are no peers."""
        if self._talk.is_alive() or not self._peers:
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
        while not self._leaving.wait(self._beat_s):
            if silent := self._silent(time.monotonic()):
                self._on_silence(f"nothing heard of {silent} for {self._silence_s:.0f} s")
                return

    def _silent(self, now: float) -> str | None:
        if self._answered is not None and now - self._answered > self._silence_s:
            return "node 0"
        late = (key for key, (said, since) in self._heard.items() if said != LEFT and now - since > self._silence_s)
        return next((self._peers[key] for key in late), None)

    def _talking(self) -> None:
        store, beats = None, 0
        while not self._leaving.wait(self._beat_s if beats else 0):
            beats += 1
            try:
                store = store or self._connected()
                self._exchange(store, str(beats))
            except (DistError, RuntimeError):
                store = None
        if store is not None:
            store.set(self._own, LEFT)

    def _connected(self) -> TCPStore:
        """A connection of our own: calls that block use the agent's."""
        patience = timedelta(seconds=max(1.0, self._silence_s / 4))
        store = TCPStore(self._host, self._port, is_master=False, wait_for_workers=False, timeout=patience)
        self._answered = time.monotonic()
        return store

    def _exchange(self, store: TCPStore, beat: str) -> None:
        store.set(self._own, beat)
        for key in self._peers:
            if not store.check([key]):
                continue
            said = store.get(key).decode()
            if said != self._heard.get(key, ("", 0.0))[0]:
                self._heard[key] = (said, time.monotonic())
        self._answered = time.monotonic()
