"""Waits until the nodes of an attempt are all there for the first time, however long that takes.

A node that waits for a machine or for its image is no failure of the others.  What waits too long is the operator's to
give back.  Once all were there, torchrun's rendezvous begins, which is bounded.
"""

import sys
import time
from datetime import timedelta
from typing import Final

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # not in __all__, but documented

from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import host_and_port

POLL_S: Final = 1.0
REPORT_EVERY_S: Final = 60.0
CONNECT: Final = timedelta(seconds=60)  # then the address of node 0 is looked up again


class Meeting:
    """The place on node 0 where nodes report.  torchrun's agent uses the same server later."""

    def __init__(self, endpoint: str, prefix: str, index: int, num_nodes: int) -> None:
        (self._host, self._port), self._index = host_and_port(endpoint), index
        self._here, self._all = f"{prefix}/here", f"{prefix}/all"
        self._num_nodes, self._missing = num_nodes, list(range(num_nodes))
        self._said, self._said_at = "", 0.0  # what was last said of the missing nodes, and when [s]
        self._store: TCPStore | None = None  # on node 0 the server, which must live as long as this process

    def wait(self) -> None:
        """Return when all nodes have been there."""
        while not self._has_begun():
            time.sleep(POLL_S)

    def _has_begun(self) -> bool:
        try:
            if self._store is None:
                self._store = self._connected()
                self._store.set(f"{self._here}/{self._index}", "")
            return self._count(self._store) if self._index == 0 else self._store.check([self._all])
        except (DistError, RuntimeError):
            if self._index == 0:
                raise
            self._store = None
            self._say("waiting for node 0")
            return False

    def _connected(self) -> TCPStore:
        return TCPStore(
            self._host,
            self._port,
            is_master=self._index == 0,
            wait_for_workers=False,
            multi_tenant=True,
            timeout=CONNECT,
        )

    def _count(self, store: TCPStore) -> bool:
        """Whether all are there.  Tells the others so."""
        self._missing = [i for i in self._missing if not store.check([f"{self._here}/{i}"])]
        if not self._missing:
            store.set(self._all, "")
            return True
        named = ", ".join(map(str, self._missing))
        self._say(f"waiting for {len(self._missing)} of {self._num_nodes} nodes: {named}")
        return False

    def _say(self, text: str) -> None:
        now = time.monotonic()
        if text != self._said or now - self._said_at >= REPORT_EVERY_S:
            self._said, self._said_at = text, now
            say(text, file=sys.stderr, flush=True)
