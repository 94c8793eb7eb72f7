"""Who reaches whom on the cluster: connections that are tried from pods, all at once, and what is expected of them."""

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from time import sleep
from typing import Any, NamedTuple

from support.cluster import kube
from support.cluster.kube import Manifest

PROBE = kube.ROOT / "tests" / "e2e" / "probe"
ANSWER, ASK = PROBE / "answer.py", (PROBE / "ask.py").read_text()
RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 10001,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


class Way(NamedTuple):
    """One connection."""

    source: str
    target: str
    protocol: str
    port: int


Answers = dict[Way, bool]


@dataclass(frozen=True)
class Row:
    """A line of a table: `who, who | whom, whom | TCP 1, UDP 2 | yes`."""

    line: str

    @property
    def cells(self) -> list[list[str]]:
        return [cell.strip().split(", ") for cell in self.line.split("|")]

    @property
    def ways(self) -> list[Way]:
        sources, targets, ways, _ = self.cells
        split = (way.split() for way in ways)
        return [
            Way(source, target, protocol, int(port))
            for source, target, (protocol, port) in product(sources, targets, [*split])
        ]

    @property
    def wanted(self) -> Answers:
        return dict.fromkeys(self.ways, self.cells[-1] == ["yes"])

    def found(self, bare: Answers, walled: Answers) -> str:
        """The line with what was found without and with policies in place of what was expected."""
        return f"{self.line.rpartition('|')[0]}| {self._said(bare)} | {self._said(walled)}"

    def _said(self, answers: Answers) -> str:
        seen = {answers[way] for way in self.ways}
        return "some" if len(seen) == 2 else "yes" if seen.pop() else "no"


@dataclass(frozen=True)
class World:
    """Who asks, by the pod that does, and who is asked, by address."""

    pods: dict[str, Manifest]
    addresses: dict[str, str]

    def answers(self, ways: Iterable[Way]) -> Answers:
        """Tried at the same time."""
        by_source: dict[str, list[Way]] = {}
        for way in ways:
            by_source.setdefault(way.source, []).append(way)
        with ThreadPoolExecutor(len(by_source)) as pool:
            answers = pool.map(self._asked, by_source, by_source.values())
        return {way: answer for found in answers for way, answer in found}

    def _asked(self, source: str, ways: list[Way]) -> list[tuple[Way, bool]]:
        targets = [(way.protocol, self.addresses[way.target], way.port) for way in ways]
        answers = json.loads(run_in(self.pods[source], "python", "-c", ASK, json.dumps(targets)))
        return list(zip(ways, answers, strict=True))


def settled(look: Callable[[], Answers], wanted: Answers, rounds: int = 6) -> list[Way]:
    """The connections that differ from what is wanted in the end: the firewall is a second or two behind."""
    for _ in range(rounds):
        seen = look()
        wrong = [way for way, answer in seen.items() if answer is not wanted[way]]
        if not wrong:
            break
        sleep(0.5)
    return wrong


def run_in(pod: Manifest, *command: str) -> str:
    meta, container = pod["metadata"], pod["spec"]["containers"][0]["name"]
    where = ("exec", "-n", meta["namespace"], meta["name"], "-c", container, "--")
    for _ in range(15):  # a kubelet that has just started learns of its pods a moment later
        try:
            return kube.kubectl(*where, *command)
        except AssertionError as error:
            if "unable to upgrade connection" not in str(error):
                raise
        sleep(1)
    return kube.kubectl(*where, *command)


def image() -> str:
    """Of pods that answer, in place of a trainer or of nobody."""
    return kube.cluster("image", "localhost/dstj-probe:e2e", str(PROBE / "Dockerfile"), str(PROBE))


def a_pod(namespace: str, name: str, image: str, **labels: str) -> Manifest:
    """One that answers on the first node."""
    command = ["python", "-m", "deepseek_trainer.launch"]
    container = {"name": "probe", "image": image, "command": command, "securityContext": RESTRICTED}
    spec = {"containers": [container], "nodeSelector": {"kubernetes.io/hostname": "node-0"}}
    meta = {"namespace": namespace, "name": name, "labels": {"app": name, **labels}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def a_service(namespace: str, name: str, selector: dict[str, str], port: int) -> Manifest:
    meta, spec = {"namespace": namespace, "name": name}, {"selector": selector, "ports": [{"port": port}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}


def ready(pod: Manifest) -> Manifest:
    where = (f"pod/{pod['metadata']['name']}", "-n", pod["metadata"]["namespace"])
    kube.kubectl("wait", "--for=condition=Ready", *where, "--timeout=60s")
    return get(*where)


def get(*arguments: str) -> Any:
    return json.loads(kube.kubectl("get", *arguments, "-o", "json"))


def policies(namespace: str) -> list[Manifest]:
    return list(get("networkpolicies", "-n", namespace)["items"])
