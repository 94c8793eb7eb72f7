"""Our `Loop` as a contestant: stopped after each lap, and without checkpoints, evaluation and reports."""

import time
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import Any
from unittest.mock import patch

import bare_machine  # noqa: F401 first
import torch
from corpora import Corpus, order
from learners import a_learner
from setting import BETAS, DECAY, MAX_NORM, RATE, Lap, Moment, Setting, now
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from deepseek_trainer.contract.checkpoint import CheckpointPolicy, Interval
from deepseek_trainer.contract.config import JobIdentity, TrainingConfig
from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.evaluation import EvaluationSpec
from deepseek_trainer.contract.export import ExportSpec
from deepseek_trainer.contract.method import MethodSpec
from deepseek_trainer.contract.model import ModelSpec
from deepseek_trainer.contract.optimization import OptimizationSpec, Precision, Schedule
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.data.loader import Load
from deepseek_trainer.model.loading import transformer
from deepseek_trainer.tasks.language.batch import TokenBatch, collate
from deepseek_trainer.telemetry.reporter import Silent
from deepseek_trainer.training import optimizer
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.savepoints import Savepoints
from deepseek_trainer.training.state import RunState
from deepseek_trainer.worker.distributed import World
from deepseek_trainer.worker.process import StopRequested

NEVER = 10**6  # steps
assert optimizer.BETAS == BETAS, "all contestants have the same"


class Clock(Silent):
    """Asks the loop to stop after some steps, and knows when the last of them ended."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device, self.left, self.end = device, 0, Moment(0, 0)

    def step(self, *_: Any) -> None:
        self.left -= 1
        if not self.left:
            self.end = now(self._device)


class NoSaver:
    has_failed = False

    def before_change(self) -> None: ...
    def wait(self) -> None: ...
    def finished(self) -> list[Any]:
        return []


class Watched(Loop):
    """Saves nothing, and measures what it waits for its batches."""

    waited = 0.0  # [s]

    def save(self) -> None: ...

    def _next_batches(self) -> list[TokenBatch]:
        start = time.perf_counter()
        batches = super()._next_batches()
        Watched.waited += time.perf_counter() - start
        return batches


class Ours:
    def __init__(self, setting: Setting, corpus: Corpus, **changes: Any) -> None:
        """`changes`: of its OptimizationSpec."""
        self._corpus, self._device, self._changes = corpus, setting.world.device, changes
        self.model, self._clock = setting.model(), Clock(setting.world.device)
        if setting.compiled:
            transformer(self.model).get_decoder().compile(dynamic=False)
        self._loop = self._made(setting)
        self.waited = 0.0  # share of the last lap

    def run(self, steps: int) -> Lap:
        cursor, self._clock.left, Watched.waited = self._loop.cursor, steps, 0.0
        start = now(self._device)
        with suppress(StopRequested):
            self._loop.run()
        tokens = 0
        for _ in range(steps):
            tokens += int(self._corpus.tokens_of_row[cursor.rank_slice(0, 1)].sum())
            cursor = cursor.advanced()
        lap = Lap(tokens, start, self._clock.end)
        self.waited = (
            Watched.waited * steps / (steps + 1) / lap.seconds
        )  # it also asks for a step that it does not take
        return lap

    def _made(self, setting: Setting) -> Loop:
        config, rows, clock = a_config(setting, **self._changes), self._corpus.rows, self._clock
        return Watched(
            config, setting.world, a_learner(self.model, config.optimization, setting.world),
            Rows([rows], collate), Rows([rows[:1]], collate), order(len(rows), setting.rows),
            RunState(), Savepoints(NoSaver(), config.checkpoint, {}), clock, lambda: clock.left <= 0,
        )  # fmt: skip


class Without(Ours):
    """With `other` in place of what a module of the trainer has: what it is worth."""

    def __init__(self, setting: Setting, corpus: Corpus, module: ModuleType, name: str, other: Any) -> None:
        self._other = partial(patch.object, module, name, other)
        with self._other():
            super().__init__(setting, corpus)

    def run(self, steps: int) -> Lap:
        with self._other():
            return super().run(steps)


def torch_loss(head: Any, hidden_ND: Tensor, targets_N: Tensor, smoothing: float, _: int) -> Tensor:
    """In place of `head_loss`: all logits at once, and a copy of them in FP32."""
    logits_NV = linear(hidden_ND, head.weight, head.bias).float()
    return cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=smoothing)


def late_loader(rows: Rows[TokenBatch], world: World, size: int) -> Load[TokenBatch]:
    """In place of `loader`: batches are made when they are due, by the thread that trains, in pageable memory."""

    def load(cursor: Cursor) -> list[TokenBatch]:
        indices = cursor.rank_slice(world.rank, world.size)
        return [rows.batch(indices[i : i + size]) for i in range(0, len(indices), size)]

    return load


def a_config(setting: Setting, **changes: Any) -> TrainingConfig:
    return TrainingConfig(
        job=JobIdentity(namespace="ml", name="bench"),
        num_nodes=1,
        num_proc_per_node=setting.world.size,
        model=ModelSpec(architecture=setting.size),
        data=DataSpec(train=VolumePath(claim_name="none"), sequence_length=setting.length),
        method=MethodSpec(),
        optimization=OptimizationSpec(
            max_steps=NEVER,
            global_batch_size=setting.rows,
            micro_batch_size=setting.micro,
            learning_rate=RATE,
            weight_decay=DECAY,
            max_grad_norm=MAX_NORM,
            warmup_steps=0,
            schedule=Schedule.CONSTANT,
            precision=Precision.BF16 if setting.bf16 else Precision.FP32,
            **changes,
        ),
        checkpoint=CheckpointPolicy(interval=Interval(steps=NEVER)),
        evaluation=EvaluationSpec(interval_steps=NEVER),
        export=ExportSpec(),
    )
