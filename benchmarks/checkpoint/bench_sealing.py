"""What sealing costs: our stream beside bare AES-GCM loops over the same buffers, and files beside plain ones.

    python benchmarks/checkpoint/bench_sealing.py [--mib 256] [--rounds 5] [--directory DIR]

There is a process for 1, 2 and 4 cores each, as far as there are so many; ours has a thread for each core, a bare loop
one in all.  Each round measures every row of every process once, so that a noisy neighbour disturbs all of them alike.
Medians over the rounds; a ratio is the median of those within a round.  CPU time is that of all threads.
"""

import argparse
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.sealing import SealedWriter
from deepseek_trainer.storage.segments import SEGMENT_BYTES, TAG_BYTES
from deepseek_trainer.storage.streams import Sink
from deepseek_trainer.storage.unsealing import SealedReader
from deepseek_trainer.storage.vault import Purpose, Vault

KEY = bytes(range(32))
Row = Callable[[], None]
Time = tuple[float, float]  # wall, CPU [s]
Times = Mapping[str, list[Time]]
CORES = (1, 2, 4)
BESIDE = {
    "stream, seal, memory": "bare loop, seal, memory",
    "stream, open, memory": "bare loop, open, memory",
    "stream, open, page cache": "bare loop, open, page cache",
    "vault, sealed file": "plain file + fsync",
    "vault, clear file (BLAKE3)": "plain file + fsync",
}
ROWS: dict[str, Row] = {}  # of a process that measures


class Nowhere:
    """A sink that costs nothing."""

    def write(self, data: memoryview) -> int:
        return len(data)


class FromMemory(SealedReader):
    """Opens what lies in memory already, as the bare loop does."""

    def _open(self, key: bytes, associated_data: bytes) -> None:
        self._content = memoryview(self.path.read_bytes())
        super()._open(key, associated_data)

    def _sealed(self, index: int, buffer: memoryview) -> memoryview:  # noqa: ARG002
        start, length = self._layout.span(index)
        return self._content[start : start + length]


def prepare(directory: Path, mib: int) -> None:
    """What this process measures, by name; each row does all of the content once."""
    content = bytearray(os.urandom(1 << 20) * mib)
    view, target = memoryview(content), memoryview(bytearray(len(content)))
    source, bare = directory / "source", directory / "bare"
    with source.open("wb", buffering=0) as file:
        stream_seal(view, file)
    lengths = write_bare(bare, view)
    whole, reader = memoryview(bare.read_bytes()), FromMemory(source, KEY, b"")
    vaults = {sealed: a_vault(directory, sealed) for sealed in (True, False)}
    ROWS.update(
        {
            "bare loop, seal, memory": lambda: bare_seal(view),
            "stream, seal, memory": lambda: stream_seal(view, Nowhere()),
            "bare loop, open, memory": lambda: bare_open(slices(whole, lengths), target),
            "stream, open, memory": lambda: stream_open(reader, target),
            "bare loop, open, page cache": lambda: bare_open(read(bare, lengths), target),
            "stream, open, page cache": lambda: open_file(source, target),
            "plain file, no sync": lambda: plain_write(directory / "plain", view, sync=False),
            "plain file + fsync": lambda: plain_write(directory / "plain", view, sync=True),
            "vault, clear file (BLAKE3)": lambda: vault_write(vaults[False], directory, content),
            "vault, sealed file": lambda: vault_write(vaults[True], directory, content),
        }
    )


def measure(name: str) -> Time:
    """Wall and CPU seconds of a row."""
    wall, cpu = time.perf_counter(), time.process_time()
    ROWS[name]()
    return time.perf_counter() - wall, time.process_time() - cpu


def names() -> list[str]:
    return list(ROWS)


def a_vault(directory: Path, sealed: bool) -> Vault:
    keys = JobKeys(directory / "keyring.json", "lab/bench", [Key(KEY)]) if sealed else None
    return Vault("lab/bench", Purpose.CHECKPOINT, keys)


def pieces(view: memoryview) -> Iterator[memoryview]:
    step = SEGMENT_BYTES - TAG_BYTES
    return (view[start : start + step] for start in range(0, len(view), step))


def bare_seal(view: memoryview) -> None:
    gcm, out, nonce = AESGCM(KEY), memoryview(bytearray(SEGMENT_BYTES)), bytes(12)
    for piece in pieces(view):
        gcm.encrypt_into(nonce, piece, None, out[: len(piece) + TAG_BYTES])


def write_bare(path: Path, view: memoryview) -> list[int]:
    """Write sealed pieces; their lengths."""
    gcm, lengths = AESGCM(KEY), []
    with path.open("wb") as file:
        for piece in pieces(view):
            lengths.append(file.write(gcm.encrypt(bytes(12), piece, None)))
    return lengths


def slices(whole: memoryview, lengths: list[int]) -> Iterator[memoryview]:
    start = 0
    for length in lengths:
        yield whole[start : start + length]
        start += length


def read(path: Path, lengths: list[int]) -> Iterator[memoryview]:
    """The same from a file, in one buffer."""
    buffer = memoryview(bytearray(SEGMENT_BYTES))
    with path.open("rb", buffering=0) as file:
        for length in lengths:
            file.readinto(buffer[:length])
            yield buffer[:length]


def bare_open(segments: Iterable[memoryview], target: memoryview) -> None:
    gcm, nonce = AESGCM(KEY), bytes(12)
    for segment in segments:
        size = len(segment) - TAG_BYTES
        gcm.decrypt_into(nonce, segment, None, target[:size])
        target = target[size:]


def stream_seal(view: memoryview, sink: Sink) -> None:
    writer = SealedWriter(sink, KEY, b"")
    writer.write(view)
    writer.close()


def stream_open(reader: SealedReader, target: memoryview) -> None:
    reader.read_into(target)


def open_file(source: Path, target: memoryview) -> None:
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


def worker(directory: Path, mib: int, cores: list[int]) -> ProcessPoolExecutor:
    """A process on these cores only; the threads that seal are counted when it imports them."""
    own, place = os.sched_getaffinity(0), directory / str(len(cores))
    place.mkdir()
    os.sched_setaffinity(0, cores)
    try:
        spawn = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(1, spawn, initializer=prepare, initargs=(place, mib))
        pool.submit(names).result()
        return pool
    finally:
        os.sched_setaffinity(0, own)


def measured(directory: Path, mib: int, rounds: int) -> dict[int, Times]:
    """Times of each row by number of cores."""
    cores = sorted(os.sched_getaffinity(0))
    pools = {count: worker(directory, mib, cores[:count]) for count in CORES if count <= len(cores)}
    rows = pools[1].submit(names).result()
    found: dict[int, Times] = {count: {name: [] for name in rows} for count in pools}
    for turn in range(rounds + 1):
        for name in rows:
            for count, pool in pools.items():
                took = pool.submit(measure, name).result()
                if turn:  # the first one touches fresh memory
                    found[count][name].append(took)
    for pool in pools.values():
        pool.shutdown()
    return found


def ratio(slow: list[Time], fast: list[Time], which: int) -> str:
    return f"{statistics.median(a[which] / b[which] for a, b in zip(slow, fast, strict=True)):9.2f}"


def report(found: dict[int, Times], mib: int) -> None:
    print(f"{'':6}{'':28}{'MiB/s':>8}{'per CPU s':>11}{'of the bare or plain one':>30}{'of one core':>13}")
    print(f"{'cores':6}{'':28}{'':8}{'':11}{'wall':>20}{'CPU time':>10}{'wall':>13}")
    for name in found[1]:
        for count, times in found.items():
            own, beside = times[name], times.get(BESIDE.get(name, ""))
            wall, cpu = (mib / statistics.median(each[which] for each in own) for which in (0, 1))
            of_bare = f"{'':11}{ratio(beside, own, 0)} {ratio(beside, own, 1)}" if beside else f"{'':30}"
            print(f"{count:<6}{name:28}{wall:8.0f}{cpu:11.0f}{of_bare}{ratio(found[1][name], own, 0):>13}")


def main() -> None:
    parser = argparse.ArgumentParser(description="What sealing costs.")
    parser.add_argument("--mib", type=int, default=256, help="size of the content [MiB]")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to write (default: the temporary directory)")
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    try:
        found = measured(directory, arguments.mib, arguments.rounds)
    finally:
        shutil.rmtree(directory)
    print(f"{arguments.mib} MiB, {arguments.rounds} rounds, 1 MiB segments, in {directory.parent}")
    report(found, arguments.mib)


if __name__ == "__main__":
    main()
