"""What the API server's audit log says about who wrote what, and when."""

import json
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

SILENCE_S = 3.0
LEASE = "leases"  # its holder writes it every 2 s, whatever jobs do, so nobody counts that
WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class Request:
    user: str
    verb: str
    resource: str  # with its subresource: jobs/status
    namespace: str
    name: str
    code: int
    received: float  # [s since the epoch]
    answered: float

    @property
    def is_write(self) -> bool:
        return self.verb in WRITES and self.resource != LEASE

    @property
    def is_counted(self) -> bool:
        """Whether it is one of those that jobs cause."""
        return self.verb != "watch" and self.resource != LEASE


def requests(log: Path, since: float = 0.0) -> Iterator[Request]:
    """Finished requests that were received after `since` [s since the epoch]."""
    with log.open() as lines:
        for line in lines:
            event = json.loads(line) if line.endswith("\n") else {}
            target = event.get("objectRef")
            if target is None:
                continue
            received = _seconds(event["requestReceivedTimestamp"])
            if received < since:
                continue
            yield Request(
                event["user"]["username"],
                event["verb"],
                "/".join(filter(None, (target["resource"], target.get("subresource")))),
                target.get("namespace", ""),
                target.get("name", ""),
                event.get("responseStatus", {}).get("code", 0),
                received,
                _seconds(event["stageTimestamp"]),
            )


def await_silence(log: Path, users: Container[str], since: float, silence_s: float = SILENCE_S) -> None:
    """Until users who may have written after `since` [s since the epoch] have not for so long."""
    while True:
        answered = [request.answered for request in requests(log, since) if request.user in users and request.is_write]
        if time.time() - max(answered, default=since) > silence_s:
            return
        time.sleep(silence_s / 3)


def writes_of(users: Container[str], found: Iterable[Request]) -> Counter[str]:
    """Writes of these users by verb, resource and, where it was refused, code."""
    return Counter(
        f"{request.verb} {request.resource}" + ("" if request.code < 300 else f" {request.code}")
        for request in found
        if request.user in users and request.is_write
    )


def _seconds(time: str) -> float:
    return datetime.fromisoformat(time).timestamp()
