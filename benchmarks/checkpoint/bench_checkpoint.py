"""Our checkpoints beside plain ones: torch.save and torch's distributed checkpointing, on the same tensors in one run.

    python benchmarks/checkpoint/bench_checkpoint.py [--mib 512] [--rounds 5] [--ranks 1] [--directory DIR]
    python benchmarks/checkpoint/bench_checkpoint.py --state small|optimizer
    python benchmarks/checkpoint/bench_checkpoint.py --device cuda --mib 8192 --directory /dev/shm

`--directory /dev/shm` for a RAM disk; with `--device cuda` rank r has its tensors on GPU r.  Every save is on the disk
when its time ends (fsync); the slowest rank counts.  A stall is how long the caller of an asynchronous save waits; the
save before it has ended.  A step is PRODUCTS matrix products, alone, and while a save of ours is under way beside it,
from its begin to its end; its stall is what it waits for the copy.  Medians over the rounds.  Peak memory is that of a
process of its own for each way to save, which saves twice: what it has resident at most, over what it had before, its
state included.
"""

import argparse
import logging
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch import Tensor

from deepseek_trainer.checkpoints.catalog import verify
from deepseek_trainer.checkpoints.saver import Saver
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.pool import THREADS
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.worker.distributed import World

Run = Callable[[], float]  # seconds
TENSORS = 24
SMALL = 16 * 1024  # elements of a small tensor
PRODUCTS = 40  # of a step
SIDES = {"cpu": 1024, "cuda": 8192}  # of the matrices
BESIDE = {
    "sealed, save": ("plain DCP, save", "torch.save"),
    "clear, save": ("plain DCP, save", "torch.save"),
    "sealed, load": ("plain DCP, load", "torch.load"),
    "clear, load": ("plain DCP, load", "torch.load"),
    "sealed, stall, copy waited for": ("plain DCP, stall of async_save",),
}
State = dict[str, dict[str, Tensor]]


def a_state(kind: str, mib: int, device: torch.device) -> State:
    """So many MiB as a few large matrices, as many small tensors, or as weights with the two moments of AdamW."""
    torch.manual_seed(0)
    elements = mib * 2**20 // 4
    if kind == "small":
        return {"model": {f"layers.{i}.bias": torch.randn(SMALL, device=device) for i in range(elements // SMALL)}}
    parts = ("model", "exp_avg", "exp_avg_sq") if kind == "optimizer" else ("model",)
    rows = elements // TENSORS // 1024 // len(parts)
    return {
        part: {f"layers.{i}.weight": torch.randn(rows, 1024, device=device) for i in range(TENSORS)} for part in parts
    }


def now(device: torch.device) -> float:
    """Seconds, once the GPU has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class Ours:
    def __init__(self, directory: Path, state: State, world: World, *, is_sealed: bool = True) -> None:
        keys = JobKeys(directory / "keyring.json", "lab/bench", [Key(bytes(range(32)))]) if is_sealed else None
        vault = Vault("lab/bench", Purpose.CHECKPOINT, keys)
        self.store = CheckpointStore(
            directory / "checkpoints", vault, rank=world.rank, world_size=world.size, exchange=world.gather
        )
        keep = Retention(keep_last=1)
        self.waiting, self.saver = (
            Saver(self.store, keep, world.beside().gather, waits_for_copy=waits) for waits in (True, False)
        )
        self._state, self._step, self._device = state, 0, world.device

    def save(self) -> float:
        self._step += 1
        start = time.perf_counter()
        self.store.save(self._step, self._state, {})
        seconds = time.perf_counter() - start
        self.store.prune(Retention(keep_last=1), None)
        return seconds

    def stall(self) -> float:
        self._step += 1
        start = time.perf_counter()
        self.waiting.save(self._step, self._state, {}, None)
        seconds = time.perf_counter() - start
        self.waiting.wait()
        return seconds

    def step(self) -> float:
        """On the average of those that a save is beside."""
        self._step += 1
        start, steps = now(self._device), 0
        self.saver.save(self._step, self._state, {}, None)
        while not (saved := self.saver.finished()):
            compute(self._device)
            self.saver.before_change()
            steps += 1
        (self._saved,) = saved
        return (now(self._device) - start) / steps

    def stall_of_step(self) -> float:
        """Of the first of them."""
        return self._saved.stall_seconds

    def durable(self) -> float:
        """Until that save was on the disk."""
        return self._saved.seconds

    def load(self) -> float:
        info = self.store.at(self._step)
        assert info is not None
        into = {
            f"{part}/{name}": torch.empty_like(tensor)
            for part, tensors in self._state.items()
            for name, tensor in tensors.items()
        }
        start = now(self._device)
        self.store.load(info, into)
        return now(self._device) - start

    def verify(self) -> float:
        info = self.store.at(self._step)
        assert info is not None
        start = time.perf_counter()
        verify(info, self.store.vault)
        return time.perf_counter() - start


def compute(device: torch.device) -> float:
    """A step without a save."""
    side = SIDES[device.type]
    matrix = torch.randn(side, side, device=device)
    start = now(device)
    for _ in range(PRODUCTS):
        torch.mm(matrix, matrix)
    return now(device) - start


class PlainDcp:
    def __init__(self, directory: Path, state: State) -> None:
        self._path, self._state = directory / "dcp", state

    def save(self) -> float:
        shutil.rmtree(self._path, ignore_errors=True)
        start = time.perf_counter()
        dcp.save(self._state, checkpoint_id=self._path)
        return time.perf_counter() - start

    def stall(self) -> float:
        shutil.rmtree(self._path, ignore_errors=True)
        start = time.perf_counter()
        future = dcp.async_save(self._state, checkpoint_id=self._path)
        seconds = time.perf_counter() - start
        future.result()  # type: ignore[union-attr]
        return seconds

    def load(self) -> float:
        into = {
            part: {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
            for part, tensors in self._state.items()
        }
        device = next(iter(self._state["model"].values())).device
        start = now(device)
        dcp.load(into, checkpoint_id=self._path)
        return now(device) - start


class TorchSave:
    def __init__(self, directory: Path, state: State) -> None:
        self._path, self._state = directory / "state.pt", state

    def save(self) -> float:
        self._path.unlink(missing_ok=True)
        start = time.perf_counter()
        with self._path.open("wb") as file:
            torch.save(self._state, file)
            os.fsync(file.fileno())
        return time.perf_counter() - start

    def load(self) -> float:
        start = time.perf_counter()
        loaded = torch.load(self._path, weights_only=True)
        return now(next(iter(loaded["model"].values())).device) - start


def measured(directory: Path, arguments: argparse.Namespace, world: World) -> dict[str, list[float]]:
    """Seconds of each row; each round runs each row once, so that a noisy neighbour disturbs all alike."""
    state = a_state(arguments.state, arguments.mib, world.device)
    plain, pickled = PlainDcp(directory, state), TorchSave(directory / str(world.rank), state)
    ours = Ours(directory / "ours", state, world)
    clear = Ours(directory / "clear", state, world, is_sealed=False)
    rows: dict[str, Run] = {
        "torch.save": pickled.save,
        "plain DCP, save": plain.save,
        "sealed, save": ours.save,
        "clear, save": clear.save,
        "torch.load": pickled.load,
        "plain DCP, load": plain.load,
        "sealed, load": ours.load,
        "clear, load": clear.load,
        "sealed, verify every byte": ours.verify,
        "plain DCP, stall of async_save": plain.stall,
        "sealed, stall, copy waited for": ours.stall,
        "a step alone": lambda: compute(world.device),
        "a step with a save beside it": ours.step,
        "sealed, stall of a step": ours.stall_of_step,
        "sealed, durable beside steps": ours.durable,
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for turn in range(arguments.rounds + 1):
        for name, run in rows.items():
            dist.barrier()
            took = max(world.gather(run()))
            if turn:  # the first one allocates
                seconds[name].append(took)
    overhead = sizes(ours.store.directory) / sum(t.nbytes for part in state.values() for t in part.values()) - 1
    if world.is_lead:
        print(f"size overhead of a sealed checkpoint: {overhead:.4%}")
    return seconds


def peak_memory(_: int, directory: Path, arguments: argparse.Namespace, name: str) -> None:
    """Print what this process has resident at most while it saves twice, over what it had before [MiB]."""
    with a_rank(directory / "alone", 0, 1, arguments.device) as world:
        state = a_state(arguments.state, arguments.mib, world.device)
        run = WAYS[name](directory / "alone", state, world)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")
        run()
        run()
        print(f"{name:34}{resident('VmHWM') - before:9.0f} MiB")


def resident(field: str) -> float:
    """Of this process, from the kernel [MiB]."""
    line = next(each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith(field))
    return int(line.split()[1]) / 1024


WAYS: dict[str, Callable[[Path, State, World], Run]] = {
    "torch.save": lambda directory, state, _: TorchSave(directory, state).save,
    "plain DCP, save": lambda directory, state, _: PlainDcp(directory, state).save,
    "plain DCP, async_save": lambda directory, state, _: PlainDcp(directory, state).stall,
    "sealed, save": lambda directory, state, world: Ours(directory, state, world).save,
    "sealed, asynchronous save": lambda directory, state, world: Ours(directory, state, world).stall,
}


def sizes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description="Our checkpoints beside plain ones.")
    parser.add_argument("--mib", type=int, default=512, help="size of the state [MiB]")
    parser.add_argument(
        "--state", choices=("large", "small", "optimizer"), default="large", help="tensors of the state"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors are")
    parser.add_argument("--directory", type=Path, help="where to write (default: the temporary directory)")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and torch.cuda.device_count() < arguments.ranks:
        print(f"--device cuda: {arguments.ranks} GPU(s) needed, {torch.cuda.device_count()} here", file=sys.stderr)
        sys.exit(2)
    directory = Path(tempfile.mkdtemp(prefix="dstj-bench-", dir=arguments.directory))
    for name in ("ours", "clear", *map(str, range(arguments.ranks))):
        (directory / name).mkdir()
    try:
        mp.spawn(on_rank, (directory, arguments), nprocs=arguments.ranks)  # type: ignore[no-untyped-call]
        print("peak memory of one rank over what it had before")
        for name in WAYS:
            (directory / "alone").mkdir()
            mp.spawn(peak_memory, (directory, arguments, name))  # type: ignore[no-untyped-call]
            shutil.rmtree(directory / "alone")
    finally:
        shutil.rmtree(directory)


def on_rank(rank: int, directory: Path, arguments: argparse.Namespace) -> None:
    with a_rank(directory, rank, arguments.ranks, arguments.device) as world:
        seconds = measured(directory, arguments, world)
        if world.is_lead:
            report(seconds, arguments.mib)


@contextmanager
def a_rank(directory: Path, rank: int, ranks: int, device: str) -> Iterator[World]:
    """The ranks that meet at a file in `directory`."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=ranks)
    place = torch.device(device, rank) if device == "cuda" else torch.device(device)
    if device == "cuda":
        torch.cuda.set_device(place)
    yield World(rank, ranks, place)
    dist.destroy_process_group()


def report(seconds: dict[str, list[float]], mib: int) -> None:
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    print(f"{mib} MiB, {dist.get_world_size()} ranks, {THREADS} threads that seal; medians")
    for name, median in medians.items():
        ratios = "".join(f"{median / medians[other]:8.2f} x {other}" for other in BESIDE.get(name, ()))
        print(f"{name:34}{median:9.3f} s{mib / median:9.0f} MiB/s{ratios}")
    alone, beside = medians["a step alone"], medians["a step with a save beside it"]
    stalls = {name: median * 1000 for name, median in medians.items() if "stall" in name}
    print(*(f"{name} {milliseconds:.1f} ms" for name, milliseconds in stalls.items()), sep="; ")
    print(f"of a step: stall {medians['sealed, stall of a step'] / alone:.2%}, longer by {beside / alone - 1:.2%}")


if __name__ == "__main__":
    main()
