"""The first process of a machine: mounts its own directories, keeps its components running, reaps orphans.

Run by `machines.py` in new mount, PID, network, IPC and host name namespaces as `python machine.py PLAN.json`.
When it dies the kernel ends every process of the machine, and with the last one its mounts are gone.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RESTART_PAUSE_S = 0.2  # a component that dies at once must not eat a processor
PATIENCE_S = 60.0


def main() -> None:
    plan = json.loads(Path(sys.argv[1]).read_text())
    socket.sethostname(plan["name"])
    for sysctl, value in plan["sysctls"].items():
        write_if_there(Path("/proc/sys") / sysctl, value)
    for source, target in plan["mounts"]:
        mount(source, target)
    supervise(plan["components"], Path(plan["logs"]))


def write_if_there(path: Path, value: str) -> None:
    if path.exists():  # bridge-nf-call-iptables: only where the kernel has br_netfilter
        path.write_text(value)


def mount(source: str, target: str) -> None:
    kind = ["-t", "tmpfs"] if source == "tmpfs" else ["--bind"]
    Path(target).mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", *kind, source, target], check=True)


def supervise(components: list[dict[str, Any]], logs: Path) -> None:
    """Start all in order, then each again whenever it ends; never returns."""
    running = {}
    for component in components:
        wait_for(component["after"])
        running[start(component, logs)] = component
    while True:
        pid, status = os.wait()
        if ended := running.pop(pid, None):
            note(ended, logs, f"ended with status {os.waitstatus_to_exitcode(status)}, starting it again")
            time.sleep(RESTART_PAUSE_S)
            running[start(ended, logs)] = ended


def wait_for(address: str | None) -> None:
    """Until somebody listens on `host:port` or on a Unix socket's path, or patience runs out."""
    end = time.monotonic() + PATIENCE_S
    while address and not listening(address) and time.monotonic() < end:
        time.sleep(0.05)


def listening(address: str) -> bool:
    if address.startswith("/"):
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(address) == 0
    host, port = address.split(":")
    with socket.socket(socket.AF_INET) as client:
        client.settimeout(1)
        return client.connect_ex((host, int(port))) == 0


def start(component: dict[str, Any], logs: Path) -> int:
    note(component, logs, "starting")
    log = str(logs / f"{component['name']}.log")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    command = component["command"]
    return os.posix_spawnp(command[0], command, os.environ, file_actions=actions, setsid=True)


def note(component: dict[str, Any], logs: Path, text: str) -> None:
    with (logs / f"{component['name']}.log").open("a") as log:
        log.write(f"--- {time.strftime('%H:%M:%S')} {component['name']}: {text}\n")


if __name__ == "__main__":
    main()
