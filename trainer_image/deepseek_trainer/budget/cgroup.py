"""What the kernel lets this container have."""

from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
# Version 2 says `max`, version 1 a number beyond all memory where there is no limit.
_FILES: Final = ("memory.max", "memory/memory.limit_in_bytes", "memory.limit_in_bytes")
_NO_LIMIT: Final = 1 << 60


def memory_limit(root: Path = ROOT) -> int | None:
    """[bytes] that all processes of the container may take together; None: no limit."""
    texts = [(root / name).read_text().strip() for name in _FILES if (root / name).is_file()]
    limits = [int(text) for text in texts if text.isdecimal() and int(text) < _NO_LIMIT]
    return min(limits, default=None)
