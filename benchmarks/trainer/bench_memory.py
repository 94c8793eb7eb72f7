"""Memory of a rank as estimated beside what a process takes: `python benchmarks/trainer/bench_memory.py`, 3 minutes.

Each configuration is a process of its own on the CPU that makes a model, trains three steps in the trainer's own loop
and saves the second beside the third.  Measured: the most that was resident, less what was before the model, after the
same with a model of a few thousand weights, so that libraries and their threads do not count.  Once with a malloc that
gives back at once what is freed (`live`), once as it is (`resident`).
"""

import ctypes
import logging
import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from learners import a_learner

from deepseek_trainer.base_model.families import scratch_dimensions
from deepseek_trainer.budget.estimate import PROGRAM, Setup, memory, needed
from deepseek_trainer.checkpoints.saver import Saver
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.draws import Draws
from deepseek_trainer.model.adapters import with_adapters
from deepseek_trainer.model.loading import scratch_model
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.telemetry.reporter import Silent
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.savepoints import Savepoints
from deepseek_trainer.training.state import RunState
from deepseek_trainer.worker.distributed import World

STEPS = 3
MIB = 1 << 20
M_MMAP_THRESHOLD = -3  # malloc.h: blocks from this size on are mapped, and unmapped when they are freed


@dataclass(frozen=True, slots=True)
class Case:
    hidden: int
    layers: int
    vocab: int
    rows: int
    length: int
    method: str = "Full"
    micro_steps: int = 1
    precision: str = "FP32"

    @property
    def architecture(self) -> Architecture:
        heads = self.hidden // 64
        return Architecture(
            hidden_size=self.hidden, num_layers=self.layers, num_heads=heads, num_key_value_heads=heads // 2,
            intermediate_size=3 * self.hidden, vocab_size=self.vocab,
        )  # fmt: skip

    @property
    def config(self) -> TrainingConfig:
        model = {"architecture": self.architecture.model_dump(by_alias=True)}
        optimization = {
            "microBatchSize": self.rows, "globalBatchSize": self.rows * self.micro_steps, "maxSteps": STEPS,
            "precision": self.precision,
        }  # fmt: skip
        return TrainingConfig.model_validate(
            {
                "job": {"namespace": "lab", "name": "bench"}, "numNodes": 1, "numProcPerNode": 1, "model": model,
                "data": {"train": {"claimName": "none"}, "sequenceLength": self.length},
                "method": {"type": self.method}, "optimization": optimization,
                "checkpoint": {"interval": {"steps": 2}}, "evaluation": {"intervalSteps": 100}, "export": {},
            }
        )  # fmt: skip


WARM = Case(128, 1, 512, 1, 32)
CASES = (
    Case(256, 4, 4096, 2, 128),
    Case(256, 4, 4096, 16, 256),
    Case(256, 4, 4096, 16, 256, micro_steps=3),
    Case(256, 4, 4096, 8, 128, precision="BF16"),
    Case(512, 8, 16384, 1, 64),
    Case(512, 8, 16384, 4, 256),
    Case(640, 10, 16384, 1, 128),
    Case(640, 10, 1024, 1, 1024),
    Case(512, 8, 16384, 2, 128, "LoRA"),
    Case(640, 10, 1024, 2, 256, "LoRA"),
)


class Noise:
    """Rows of random tokens, all learned."""

    def __init__(self, case: Case) -> None:
        self._case = case

    def __len__(self) -> int:
        return 64

    def batch(self, indices: Sequence[int], draws: Draws | None = None) -> TokenBatch:
        tokens_BT = torch.randint(self._case.vocab, (len(indices), self._case.length))
        positions_BT = torch.arange(self._case.length).expand_as(tokens_BT)
        return TokenBatch(
            tokens_BT, tokens_BT.roll(-1, 1), positions_BT, torch.zeros_like(tokens_BT), draws and draws.numbers
        )


def train(case: Case, world: World) -> None:
    config = case.config
    model = scratch_model(case.architecture, case.length, seed=0).train()
    if lora := config.method.adapters:
        model = with_adapters(model, lora, seed=0)
    learner = a_learner(model, config.optimization, world)
    rows = Noise(case)
    cursor = Cursor(seed=0, rows=len(rows), global_batch=config.optimization.global_batch_size, data_digest="ab" * 32)
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        vault = Vault("lab/bench", Purpose.CHECKPOINT)
        store = CheckpointStore(Path(directory), vault, rank=0, world_size=1, exchange=world.gather)
        saver = Saver(store, config.checkpoint.retention, world.beside().gather)
        savepoints = Savepoints(saver, config.checkpoint, {})
        loop = Loop(config, world, learner, rows, rows, cursor, RunState(), savepoints, Silent(), lambda: False)  # type: ignore[arg-type]
        loop.state.evaluated_step = STEPS
        loop.run()


def resident(field: str) -> int:
    """[bytes] `VmRSS`: now; `VmHWM`: the most since the mark was reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measured(case: Case, *, is_live: bool) -> int:
    """[bytes] that training took at most; in a process of its own."""
    if is_live:
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MIB)
    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "GLOO_SOCKET_IFNAME": "lo"}
    dist.init_process_group("gloo", rank=0, world_size=1)
    world = World(0, 1, torch.device("cpu"))
    train(WARM, world)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    train(case, world)
    peak = resident("VmHWM") - before
    dist.destroy_process_group()
    return peak


def in_a_process(case: Case, *, is_live: bool) -> int:
    """Forked, so that each begins with what is imported here."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(measured, (case,), {"is_live": is_live})


def main() -> None:
    head = (
        "parameters",
        "method",
        "rows",
        "tokens",
        "micro-steps",
        "compute",
        "state",
        "kept",
        "estimate",
        "live",
        "ratio",
        "resident",
    )
    print("  ".join(f"{name:>11}" for name in head), "  [MiB]")
    for case in CASES:
        live, default = (in_a_process(case, is_live=is_live) for is_live in (True, False))
        dimensions = scratch_dimensions(case.architecture)
        setup = Setup.of(case.config, is_bf16=case.precision == "BF16", is_cuda=False)
        parts, estimate = memory(dimensions, setup), needed(dimensions, setup) - PROGRAM
        facts = (
            f"{dimensions.parameters / 1e6:.1f} M", case.method, case.rows, case.length, case.micro_steps,
            case.precision, (parts.certain + parts.buckets + parts.host_copy) // MIB,
            (parts.activations + parts.logits) // MIB, estimate // MIB, live // MIB,
            f"{estimate / live:.2f}", default // MIB,
        )  # fmt: skip
        print("  ".join(f"{fact:>11}" for fact in facts), flush=True)


if __name__ == "__main__":
    main()
