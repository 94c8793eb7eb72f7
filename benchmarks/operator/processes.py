"""Operators as processes, and what processes use."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chart import NAMESPACE
from plane import PATIENCE_S, Plane

from dstj.local.machine import free_ports

HERE = Path(__file__).resolve().parent
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Operator:
    pid: int
    port: int  # of /healthz


@contextmanager
def operator(plane: Plane, program: str, *options: str) -> Iterator[Operator]:
    """`product` (python -m deepseek_operator) or `floor`, once it answers /healthz."""
    (port,) = free_ports(1)
    modules = {"product": ["-m", "deepseek_operator"], "floor": [str(HERE / "floor.py")]}
    election = ["--leader-elect", f"--operator-namespace={NAMESPACE}"]
    flags = ["--all-namespaces", f"--port={port}", *election, *options] if program == "product" else [str(port)]
    environment = os.environ | {"KUBECONFIG": str(plane.kubeconfig("operator"))}
    with (plane.directory / f"{program}.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, *modules[program], *flags], env=environment, stdout=log, stderr=log, cwd="/"
        )
    try:
        wait_until_healthy(process, port)
        yield Operator(process.pid, port)
    finally:
        process.terminate()
        process.wait(30)


def wait_until_healthy(process: subprocess.Popen[bytes], port: int, path: str = "healthz") -> None:
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > end:
                raise
        time.sleep(0.05)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def machine_cpu_s() -> float:
    """CPU seconds that the whole machine has used so far, or that were taken from it."""
    fields = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    idle, waiting = fields[3:5]
    return (sum(fields) - idle - waiting) / TICKS_PER_S


def memory_mb(pid: int, what: str = "VmHWM") -> float:
    """Resident memory [MB of 10^6 bytes]: the most so far, or with VmRSS what it is now."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith(what))
