"""What this machine has to offer, without importing torch."""

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from deepseek_trainer.budget.cgroup import memory_limit


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpus(environ: Mapping[str, str] = os.environ) -> Sequence[str]:
    """Indices of the NVIDIA GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    if (visible := environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [gpu for gpu in visible.split(",") if gpu and gpu != "-1"]
    return [str(i) for i in range(len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))]


def memory_bytes() -> int:
    """Memory that new processes may take: what the kernel calls available, less where a cgroup allows less."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    limit = memory_limit()
    return available if limit is None else min(available, limit)


def free_bytes(path: Path) -> int:
    """Free space where `path` is, or will be made."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def free_ports(count: int) -> list[int]:
    """Different TCP ports that nobody listens on; somebody may still take one before we do."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
