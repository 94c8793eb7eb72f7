"""Reads how much memory the kernel allows this container."""

from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
# Without a limit, version 2 has `max`, and version 1 a number beyond all memory.
_FILES: Final = ("memory.max", "memory/memory.limit_in_bytes", "memory.limit_in_bytes")
_NO_LIMIT: Final = 1 << 60


def memory_limit(root: Path = ROOT) -> int | None:
    """Memory that all processes of the container may take together [bytes]; None without a limit."""
    texts = [(root / name).read_text().strip() for name in _FILES if (root / name).is_file()]
    limits = [int(text) for text in texts if text.isdecimal() and int(text) < _NO_LIMIT]
    return min(limits, default=None)
