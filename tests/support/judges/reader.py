"""Another reader of a job's files: a Go program that was written from docs/checkpoint-format.md alone."""

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[2] / "e2e" / "reader"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dstj" / "reader"


class Told(NamedTuple):
    """What the reader tells of a file or a tensor: the size of its plaintext, and its SHA-256."""

    size: int
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> "Told":
        return cls(len(content), hashlib.sha256(content).hexdigest())


def built() -> Path:
    """The program, built when its sources have changed: seconds, and besides Go nothing but two modules."""
    sources = sorted(path for path in SOURCE.iterdir() if path.suffix == ".go" or path.name.startswith("go."))
    digest = hashlib.sha256(b"".join(f"{path.name}\0".encode() + path.read_bytes() for path in sources))
    program = CACHE / digest.hexdigest()[:16]
    if not program.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "-mod=readonly -buildvcs=false"}
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            command = ["nice", "-n", "5", "go", "build", "-o", f"{scratch}/reader", "."]
            subprocess.run(command, check=True, cwd=SOURCE, env=environment)
            Path(scratch, "reader").replace(program)
    return program


def run(work: Path, keks: Iterable[Path] = (), *options: str) -> subprocess.CompletedProcess[str]:
    keys = [argument for kek in keks for argument in ("-kek", str(kek))]
    return subprocess.run([built(), *keys, *options, work], capture_output=True, text=True, check=False)


def told(work: Path, keks: Iterable[Path] = (), *options: str) -> dict[str, Told]:
    """All that the reader opens, by its name."""
    done = run(work, keks, *options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    return {name: Told(int(size), digest) for name, size, digest in lines}


def refusal(work: Path, keks: Iterable[Path] = (), *options: str) -> str:
    """Why the reader refuses; empty where it opens everything."""
    done = run(work, keks, *options)
    assert (done.returncode, bool(done.stderr)) in ((0, False), (1, True)), done.stderr
    return done.stderr.removeprefix("refused: ")
