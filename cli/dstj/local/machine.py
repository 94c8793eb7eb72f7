"""Reads what this machine has: cores, GPUs, memory, disk, ports.  Does not import torch."""

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from deepseek_trainer.budget.cgroup import memory_limit


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus(environ: Mapping[str, str] = os.environ) -> Sequence[str]:
    """The indices of the NVIDIA GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    return [str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


def memory_bytes() -> int:
    """The memory that new processes may take: what the kernel calls available, or less if a cgroup allows less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit = memory_limit()
    return available if limit is None else min(available, limit)


def free_bytes(path: Path) -> int:
    """The free space where `path` is, or will be made."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def free_ports(count: int) -> list[int]:
    """Different TCP ports on which nobody listens.  Another process may still take one before it is used."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
