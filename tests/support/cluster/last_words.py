"""What is shown of the cluster when a test fails: the end of every component's log, the operator, one namespace.

All of it is cut: a failure is to be read.
"""

import subprocess
from pathlib import Path

from support.cluster import kube
from support.cluster.kube import Namespace

MAX_LOG = 1500  # of each of a machine's logs [bytes]; there are about twenty
MAX_ANSWER = 6000  # of each answer of kubectl [characters]
MAX_PODS = 8  # whose logs are shown
NO_WORDS = {"audit"}  # who asked for what, and nothing of what went wrong

Section = tuple[str, str]  # heading, text


def of_cluster(namespace: Namespace | None = None) -> list[Section]:
    """Everything that helps to understand a failure, by heading; of a cluster that does not answer, its logs."""
    return [*(of_namespace(namespace.name) if namespace else ()), *of_operator(), *of_components(kube.LOGS)]


def of_components(logs: Path) -> list[Section]:
    """The end of each log of each machine; `cluster.py logs COMPONENT` has them whole."""
    files = (file for file in sorted(logs.glob("*/*.log")) if file.stem not in NO_WORDS and file.stat().st_size)
    return [(f"{file.parent.name}: {file.stem}", tail(file)) for file in files]


def tail(file: Path) -> str:
    with file.open("rb") as log:
        log.seek(max(0, file.stat().st_size - MAX_LOG))
        return log.read().decode(errors="replace")


def of_operator() -> list[Section]:
    where = ("-n", kube.OPERATOR_NAMESPACE)
    return [
        ("operator's pods", answer(*where, "get", "pods", "-o", "wide")),
        ("operator", answer(*where, "logs", "-l", kube.SELECTOR, "--prefix", "--tail=40")),
    ]


def of_namespace(name: str) -> list[Section]:
    looks = {
        "training jobs": ("get", "dstj", "-o", "jsonpath={range .items[*]}{.metadata.name}: {.status}{'\\n'}{end}"),
        "events": ("get", "events", "-o", "custom-columns=TIME:lastTimestamp,ABOUT:involvedObject.name,TOLD:message"),
        "objects": ("get", "dstj,jobs,pods,pvc", "-o", "wide"),
        "pods": ("describe", "pods"),
    }
    told = [(heading, answer("-n", name, *look)) for heading, look in looks.items()]
    pods = answer("-n", name, "get", "pods", "-o", "name").split()[:MAX_PODS]
    return told + [(f"logs of {pod}", answer("-n", name, "logs", pod, "--all-containers", "--tail=50")) for pod in pods]


def answer(*arguments: str) -> str:
    """The end of what kubectl says, whether it can or not."""
    command = kube.kubectl_command("--request-timeout=10s", *arguments)
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return (done.stdout + done.stderr)[-MAX_ANSWER:]
