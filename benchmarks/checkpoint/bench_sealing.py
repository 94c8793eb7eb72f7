"""What sealing costs: the stream against bare AES-GCM and a plain write, side by side in one run.

    python benchmarks/checkpoint/bench_sealing.py [--mib 256] [--rounds 5] [--directory DIR]

Under `taskset -c 0` it shows one core.  Each round measures every row once, so that a noisy neighbour disturbs all of
them alike; the table has medians.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from deepseek_trainer.keys import JobKeys, Key
from deepseek_trainer.pool import THREADS
from deepseek_trainer.sealing import SEGMENT_BYTES, TAG_BYTES, SealedReader, SealedWriter
from deepseek_trainer.vault import Purpose, Vault

KEY = bytes(range(32))
Row = Callable[[], None]
Time = tuple[float, float]  # wall, CPU [s]


class Nowhere:
    """A sink that costs nothing."""

    def write(self, data: memoryview) -> int:
        return len(data)


def rows(directory: Path, content: bytearray) -> dict[str, Row]:
    """What is measured, by name; each does `content` once."""
    view, vaults = memoryview(content), {sealed: a_vault(directory, sealed) for sealed in (True, False)}
    source = directory / "source"
    with source.open("wb") as file:
        writer = SealedWriter(file, KEY, b"")
        writer.write(content)
        writer.close()
    sealed_segments, bare = bare_segments(view), directory / "bare"
    bare.write_bytes(b"".join(sealed_segments))
    target = memoryview(bytearray(len(content)))
    return {
        "bare AES-GCM, seal": lambda: bare_seal(view),
        "stream, seal": lambda: stream_seal(view),
        "bare AES-GCM, open": lambda: bare_open(sealed_segments),
        "read + bare AES-GCM, open": lambda: bare_open(read_segments(bare, sealed_segments)),
        "stream, open (page cache)": lambda: stream_open(source, target),
        "plain write, no sync": lambda: plain_write(directory / "plain", view, sync=False),
        "plain write + fsync": lambda: plain_write(directory / "plain", view, sync=True),
        "vault write, clear (SHA-256)": lambda: vault_write(vaults[False], directory, content),
        "vault write, sealed": lambda: vault_write(vaults[True], directory, content),
    }


def a_vault(directory: Path, sealed: bool) -> Vault:
    keys = JobKeys(directory / "keyring.json", "lab/bench", [Key(KEY)]) if sealed else None
    return Vault("lab/bench", Purpose.CHECKPOINT, keys)


def bare_seal(view: memoryview) -> None:
    gcm, out, nonce = AESGCM(KEY), memoryview(bytearray(SEGMENT_BYTES)), bytes(12)
    step = SEGMENT_BYTES - TAG_BYTES
    for start in range(0, len(view), step):
        piece = view[start : start + step]
        gcm.encrypt_into(nonce, piece, None, out[: len(piece) + TAG_BYTES])


def bare_segments(view: memoryview) -> list[bytes]:
    gcm, step = AESGCM(KEY), SEGMENT_BYTES - TAG_BYTES
    return [gcm.encrypt(bytes(12), view[start : start + step], None) for start in range(0, len(view), step)]


def bare_open(segments: Iterable[bytes | memoryview]) -> None:
    gcm, out, nonce = AESGCM(KEY), memoryview(bytearray(SEGMENT_BYTES)), bytes(12)
    for segment in segments:
        gcm.decrypt_into(nonce, segment, None, out[: len(segment) - TAG_BYTES])


def read_segments(path: Path, segments: list[bytes]) -> Iterator[memoryview]:
    """`segments` again, from the file that holds them, in one buffer."""
    buffer = memoryview(bytearray(SEGMENT_BYTES))
    with path.open("rb", buffering=0) as file:
        for segment in segments:
            file.readinto(buffer[: len(segment)])
            yield buffer[: len(segment)]


def stream_seal(view: memoryview) -> None:
    writer = SealedWriter(Nowhere(), KEY, b"")
    writer.write(view)
    writer.close()


def stream_open(source: Path, target: memoryview) -> None:
    with SealedReader(source, KEY, b"") as reader:
        reader.read_into(target)


def plain_write(path: Path, view: memoryview, *, sync: bool) -> None:
    with path.open("wb", buffering=0) as file:
        for start in range(0, len(view), SEGMENT_BYTES):
            file.write(view[start : start + SEGMENT_BYTES])
        if sync:
            os.fsync(file.fileno())
    path.unlink()


def vault_write(vault: Vault, directory: Path, content: bytearray) -> None:
    vault.write(directory / "file", content)
    vault.on_disk(directory / "file").unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description="What sealing costs.")
    parser.add_argument("--mib", type=int, default=256, help="size of the content [MiB]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to write (default: the temporary directory)")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        content = bytearray(os.urandom(1 << 20) * arguments.mib)
        measured = rows(directory, content)
        times: dict[str, list[Time]] = {name: [] for name in measured}
        for _ in range(arguments.rounds):
            for name, run in measured.items():
                times[name].append(time_of(run))
    finally:
        shutil.rmtree(directory)
    print(f"{arguments.mib} MiB, {arguments.rounds} rounds, 1 MiB segments, {THREADS} threads, in {directory.parent}")
    print(f"{'':32}{'median':>10}{'best':>10}{'per CPU s':>12}  [MiB/s]")
    for name, each in times.items():
        walls = [wall for wall, _ in each]
        figures = (statistics.median(walls), min(walls), statistics.median(cpu for _, cpu in each))
        median, best, cpu = (arguments.mib / figure for figure in figures)
        print(f"{name:32}{median:10.0f}{best:10.0f}{cpu:12.0f}")


def time_of(run: Row) -> Time:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    main()
