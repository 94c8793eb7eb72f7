#!/usr/bin/env python3
"""A real two-node Kubernetes on one Linux machine, without Docker and without an image registry.

Each machine of the cluster is a set of kernel namespaces, see `machine.py`.  All of it lives in /var/lib/dstj-cluster
(DSTJ_CLUSTER_STATE moves it), the network namespaces dstj-*, the interface dstj0 and the cgroup dstj-cluster.
"""

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import api
import build
import images
import lifecycle
import machines
import smoke
from layout import CONTROL, KUBECONFIG, NODES, Machine, node
from shell import ClusterError, say

Act = Callable[[argparse.Namespace], int | None]
Argument = tuple[str, dict[str, Any]]
LOCK = Path("/run/dstj-cluster.lock")


def up(_: argparse.Namespace) -> None:
    with one_at_a_time():
        lifecycle.up()


def build_programs(_: argparse.Namespace) -> None:
    with one_at_a_time():
        build.install_packages()
        build.programs()


def down(options: argparse.Namespace) -> None:
    with one_at_a_time():
        lifecycle.down(options.purge)


def kill_node(options: argparse.Namespace) -> None:
    with one_at_a_time():
        machines.power_off(node(options.node))


def start_node(options: argparse.Namespace) -> None:
    with one_at_a_time():
        lifecycle.start_node(node(options.node))
        lifecycle.await_node(node(options.node))


def image(options: argparse.Namespace) -> None:
    with one_at_a_time():
        write(images.provide(options.name, options.dockerfile, options.context))


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Two starts or stops at once would take each other's network apart."""
    with LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def restart(options: argparse.Namespace) -> None:
    machines.restart(CONTROL if options.on == CONTROL.name else node(options.on), options.component)


def status(_: argparse.Namespace) -> int:
    answers = machines.is_on(CONTROL) and api.get("/readyz") == "ok"
    ready = {CONTROL: answers} | {machine: answers and lifecycle.is_ready(machine) for machine in NODES}
    for machine, well in ready.items():
        write(line(machine, well))
    write(f"kubeconfig {KUBECONFIG}")
    return 0 if all(ready.values()) else 1


def line(machine: Machine, ready: bool) -> str:
    state = "ready" if ready else "not ready" if machines.is_on(machine) else "off"
    return f"{machine.name:10} {machine.ip:12} {state}"


def kubeconfig(_: argparse.Namespace) -> None:
    write(str(KUBECONFIG))


def kubectl(options: argparse.Namespace) -> int:
    command = [build.programs() / "kubectl", f"--kubeconfig={KUBECONFIG}", *options.arguments]
    return subprocess.run(command, check=False).returncode


def logs(options: argparse.Namespace) -> None:
    for path in lifecycle.logs_of(options.component):
        write(f"==> {path} <==")
        with path.open("rb") as log:
            shutil.copyfileobj(log, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def run_smoke(_: argparse.Namespace) -> None:
    smoke.run_all()


def write(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


PURGE = {"action": "store_true", "help": "delete the cluster's state too"}
ON = {"default": CONTROL.name, "choices": [CONTROL.name, *(str(number) for number in range(len(NODES)))]}
IMAGE: tuple[Argument, ...] = (("name", {}), ("dockerfile", {"type": Path}), ("context", {"type": Path}))
NODE: Argument = ("node", {"choices": [str(number) for number in range(len(NODES))]})

# name, what it does, its help, its arguments
COMMANDS: tuple[tuple[str, Act, str, tuple[Argument, ...]], ...] = (
    ("up", up, "start what is not running", ()),
    ("build", build_programs, "build what `up` starts, and start nothing", ()),
    ("down", down, "switch all off; programs and built images stay cached", (("--purge", PURGE),)),
    ("status", status, "one line a machine; exit status 1 unless all are ready", ()),
    ("kubeconfig", kubeconfig, "print the path of the admin's kubeconfig", ()),
    ("kubectl", kubectl, "run the cluster's own kubectl", (("arguments", {"nargs": argparse.REMAINDER}),)),
    ("logs", logs, "print a component's log from every machine", (("component", {}),)),
    ("kill-node", kill_node, "pull a node's plug", (NODE,)),
    ("start-node", start_node, "switch a node on again", (NODE,)),
    ("restart", restart, "kill a component; its machine starts it again", (("component", {}), ("--on", ON))),
    ("image", image, "build an image, give it to both nodes, print its name by digest", IMAGE),
    ("smoke", run_smoke, "check DNS, network, volumes, GPUs, logs, exec and the loss of a node", ()),
)


def parser() -> argparse.ArgumentParser:
    plain = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(prog="cluster.py", description=__doc__, formatter_class=plain)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for name, act, summary, arguments in COMMANDS:
        command = commands.add_parser(name, help=summary)
        command.set_defaults(act=act)
        for argument, options in arguments:
            command.add_argument(argument, **options)
    return top


def main() -> int:
    options = parser().parse_args()
    if os.geteuid() != 0:
        say("error: its machines are made of kernel namespaces: run it as root")
        return 77
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # so that temporary files go
    try:
        return options.act(options) or 0
    except ClusterError as error:
        say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
