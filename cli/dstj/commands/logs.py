"""`dstj logs`: prints what the containers of a job wrote, with the node in front of each line."""

import re
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.storage.opening import opened
from dstj.local.home import Home, JobHome
from dstj.remote.context import ask, is_remote

if TYPE_CHECKING:
    from dstj.remote.apiserver import ApiServer

POLL_S = 0.2
CONTAINERS = ("prepare", "trainer")
POD = re.compile(r"(?P<job>.+)-a(?P<attempt>\d+)-(?P<node>\d+)")


@dataclass(slots=True)
class Log:
    """One container's log file, and how much of it has been printed [bytes]."""

    path: Path
    node: int
    read: int = field(default=0)

    def lines(self, *, is_last_look: bool) -> Iterator[str]:
        """The lines added since the last call.  An unfinished line waits for the next call, except on the last look."""
        with opened(self.path) as file:
            file.seek(self.read)
            new = file.read()
        whole = new if is_last_look else new[: new.rfind(b"\n") + 1]
        self.read += len(whole)
        text = whole.decode(errors="replace").replace("\r\n", "\n").removesuffix("\n")
        for line in text.split("\n") if whole else ():
            yield f"[{self.node} {self.path.stem}] {line}"


def logs(arguments: Namespace) -> int:
    """Print the logs of one attempt; with --follow, until the job no longer runs."""
    home = Home.from_env()
    if is_remote(home, arguments.name, arguments.namespace):
        return ask(lambda server: _of_cluster(server, arguments), arguments.namespace)
    return _local(home.known_job(arguments.name), arguments)


async def _of_cluster(server: "ApiServer", arguments: Namespace) -> int:
    from dstj.remote.pod_logs import pod_logs

    return await pod_logs(server, arguments, CONTAINERS)


def _local(place: JobHome, arguments: Namespace) -> int:
    attempt = arguments.attempt or max(_attempts(place), default=0)
    seen: dict[Path, Log] = {}
    while True:
        is_last_look = not (arguments.follow and place.is_locked)
        for log in _selected(place, attempt, arguments):
            for line in seen.setdefault(log.path, log).lines(is_last_look=is_last_look):
                say(line)
        sys.stdout.flush()
        if is_last_look:
            break
        time.sleep(POLL_S)
    if not seen:
        raise _nothing(place, attempt, arguments)
    return ExitCode.DONE


def _selected(place: JobHome, attempt: int, arguments: Namespace) -> list[Log]:
    containers = [arguments.container] if arguments.container else CONTAINERS
    found = []
    for pod, (of_attempt, node) in _pods(place).items():
        if of_attempt == attempt and arguments.node in (None, node):
            paths = (pod / f"{container}.log" for container in containers)
            found += [Log(path, node) for path in paths if path.exists()]
    return sorted(found, key=lambda log: (CONTAINERS.index(log.path.stem), log.node))


def _pods(place: JobHome) -> dict[Path, tuple[int, int]]:
    """The attempt and node of every pod that ever ran, by the directory of its logs."""
    matches = {path: POD.fullmatch(path.name) for path in place.logs.glob("*")}
    return {path: (int(match["attempt"]), int(match["node"])) for path, match in matches.items() if match}


def _attempts(place: JobHome) -> set[int]:
    return {attempt for attempt, _ in _pods(place).values()}


def _nothing(place: JobHome, attempt: int, arguments: Namespace) -> ConfigError:
    attempts = ", ".join(map(str, sorted(_attempts(place)))) or "none yet"
    nodes = ", ".join(str(node) for of_attempt, node in sorted(_pods(place).values()) if of_attempt == attempt)
    wanted = f"attempt {attempt}" + (f", node {arguments.node}" if arguments.node is not None else "")
    hint = f"attempts with logs: {attempts}" + (f"; nodes of attempt {attempt}: {nodes}" if nodes else "")
    return ConfigError(f"{place.directory.name}: no logs of {wanted}", hint=hint)
