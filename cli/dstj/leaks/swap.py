"""Finds swap space that keeps what a process had in memory readable on a disk."""

from pathlib import Path

PROC, BLOCK = Path("/proc/swaps"), Path("/sys/class/block")


def swap_in_the_clear(proc: Path = PROC, block: Path = BLOCK) -> list[str]:
    """The swap devices and files in use that are not known to be encrypted."""
    try:
        lines = proc.read_text().splitlines()[1:]
    except OSError:  # a kernel without swap
        return []
    return [name for name in (line.split()[0] for line in lines if line.strip()) if not _is_safe(name, block)]


def _is_safe(name: str, block: Path) -> bool:
    """Whether it is a device of dm-crypt, or memory itself."""
    device = block / Path(name).resolve().name  # /dev/mapper/swap leads to /dev/dm-1
    try:
        if device.name.startswith("zram"):
            return (device / "backing_dev").read_text().strip() == "none"
        return (device / "dm" / "uuid").read_text().startswith("CRYPT-")
    except OSError:
        return False
