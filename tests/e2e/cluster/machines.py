"""Machines as seen from outside: wired up, started, looked into, switched off."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import network
from layout import CGROUP, HERE, Machine
from shell import ClusterError, run, wait_until

Plan = dict[str, object]


def power_on(machine: Machine, plan: Plan) -> None:
    """Start it from its plan, as after a power loss: disks as they were, no process, no mount."""
    power_off(machine)
    machine.logs.mkdir(parents=True, exist_ok=True)
    machine.plan.parent.mkdir(parents=True, exist_ok=True)
    machine.plan.write_text(as_text(plan))
    network.attach(machine)
    for directory in cgroups(machine):
        directory.mkdir(parents=True, exist_ok=True)
    launch(machine)


def launch(machine: Machine) -> None:
    namespaces = ["--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc"]
    command = ["nsenter", f"--net=/run/netns/{machine.namespace}", "unshare", *namespaces]
    command += [sys.executable, str(HERE / "machine.py"), str(machine.plan)]
    with (machine.logs / "machine.log").open("a") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
        )
    pid_file(machine).write_text(str(process.pid))
    wait_until(f"{machine.name} starts", lambda: init_pid(machine) is not None or process.poll() is not None, 10, 0.01)
    if process.poll() is not None:
        raise ClusterError(f"{machine.name} ended at once: see {machine.logs}/machine.log")


def power_off(machine: Machine) -> None:
    """Pull the plug: nothing in it gets a chance to say good-bye."""
    pid = outer_pid(machine)
    members = process_tree(pid) if pid else []
    if pid:
        os.kill(pid, signal.SIGKILL)
    wait_until(f"{machine.name} is off", lambda: not any(alive(member) for member in members), 30, 0.02)
    pid_file(machine).unlink(missing_ok=True)
    network.detach(machine)
    remove_cgroups(machine)


def is_on(machine: Machine) -> bool:
    return init_pid(machine) is not None


def runs(machine: Machine, plan: Plan) -> bool:
    """Whether it is on and was started from such a plan, not from one of an older checkout."""
    return is_on(machine) and machine.plan.read_text() == as_text(plan)


def as_text(plan: Plan) -> str:
    return json.dumps(plan, indent=1)


def command_in(machine: Machine, *command: str) -> list[str]:
    """A command line that runs `command` with the machine's processes, mounts and network."""
    pid = init_pid(machine)
    if pid is None:
        raise ClusterError(f"{machine.name} is off: cluster.py up, or start-node for a node")
    return ["nsenter", "--target", str(pid), "--mount", "--net", "--pid", "--uts", "--ipc", *command]


def inside(machine: Machine, *command: str, **options: object) -> str:
    return run(*command_in(machine, *command), **options)


def restart(machine: Machine, component: str) -> None:
    """Kill one component, as a crash would; its machine starts it again."""
    pid = component_pid(machine, component)
    os.kill(pid, signal.SIGKILL)
    wait_until(f"{component} ends", lambda: not alive(pid), 60)


def component_pid(machine: Machine, component: str) -> int:
    """By its number on the host.  Raises ClusterError where it does not run."""
    init = init_pid(machine)
    for pid in children(init) if init else []:
        if Path(arguments(pid)[0]).name == component:
            return pid
    raise ClusterError(f"no {component} runs on {machine.name}")


def pid_file(machine: Machine) -> Path:
    return machine.plan.parent / "pid"


def outer_pid(machine: Machine) -> int | None:
    """The process whose death ends the machine, if it runs; a recycled PID is not taken for it."""
    try:
        pid = int(pid_file(machine).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return pid if str(machine.plan) in arguments(pid) else None


def init_pid(machine: Machine) -> int | None:
    """The machine's first process, by its number on the host."""
    outer = outer_pid(machine)
    return next(iter(children(outer)), None) if outer else None


def arguments(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return [""]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children(pid: int) -> list[int]:
    return [child for child, parent in parents() if parent == pid]


def process_tree(root: int) -> list[int]:
    """A process and its descendants; those of a machine all descend from it, or are adopted by its first."""
    known, table = [root], list(parents())
    for member in known:
        known.extend(child for child, parent in table if parent == member)
    return known


def parents() -> Iterator[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        yield int(stat.parent.name), int(fields[1])


def cgroups(machine: Machine) -> list[Path]:
    """The machine's group in each hierarchy: one with cgroup v2, a dozen with v1."""
    mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [
        Path(fields[4]) / CGROUP / machine.name
        for fields in mounts
        if fields[fields.index("-") + 1].startswith("cgroup")
    ]


def remove_cgroups(machine: Machine) -> None:
    for group in cgroups(machine):
        for directory, _, _ in os.walk(group, topdown=False):
            remove_empty(Path(directory))
        if group.parent.is_dir() and not any(sibling.is_dir() for sibling in group.parent.iterdir()):
            group.parent.rmdir()


def remove_empty(group: Path, patience_s: float = 10) -> None:
    """The kernel frees a group a moment after its last process is gone."""
    end = time.monotonic() + patience_s
    while group.is_dir():
        try:
            group.rmdir()
        except OSError as error:
            if time.monotonic() > end:
                raise ClusterError(f"{group} cannot be removed: {error}") from error
            time.sleep(0.02)
