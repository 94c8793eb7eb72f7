"""Puts a run's loop together, at the checkpoint that it goes on from or at the first step."""

from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import torch
from torch import nn

from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.budget.ladder import promise, settings
from deepseek_trainer.budget.perf import Yardstick
from deepseek_trainer.checkpoints.catalog import telling
from deepseek_trainer.checkpoints.saver import Saver
from deepseek_trainer.checkpoints.store import CheckpointInfo
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.contract.optimization import OptimizationSpec, Strategy
from deepseek_trainer.contract.shaping import described
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.shards import record_counts
from deepseek_trainer.model.dropout import drop_out
from deepseek_trainer.model.finite import refuse_non_finite
from deepseek_trainer.model.method import trainable
from deepseek_trainer.model.precision import autocast, compute_dtype
from deepseek_trainer.model.recompute import recompute_activations
from deepseek_trainer.run.climb import saved_rungs
from deepseek_trainer.run.rank import Rank, attempt
from deepseek_trainer.run.resume import changed_settings, is_own, lengthens, refuse_ended
from deepseek_trainer.tasks.task import Task
from deepseek_trainer.telemetry.meter import gpu_at_work
from deepseek_trainer.telemetry.profiler import Profiler
from deepseek_trainer.telemetry.progress import Progress
from deepseek_trainer.telemetry.reporter import Reporter, Silent
from deepseek_trainer.training.learner import Learner
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.savepoints import Savepoints
from deepseek_trainer.training.state import RunState
from deepseek_trainer.training.strategies import learner_of
from deepseek_trainer.worker.distributed import World
from deepseek_trainer.worker.scratch import Scratch


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run has come: its place in the data, and its counters."""

    cursor: Cursor
    state: RunState

    @classmethod
    def first(cls, rank: Rank) -> Self:
        prepared, optimization = rank.prepared, rank.fitted.optimization
        cursor = Cursor(
            seed=optimization.seed,
            rows=len(prepared.train),
            global_batch=optimization.global_batch_size,
            data_digest=prepared.order.digest(prepared.name),
            order=prepared.order,
        )
        return cls(cursor, RunState())

    @classmethod
    def of(cls, rank: Rank, info: CheckpointInfo) -> Self:
        """The position in a checkpoint, over the same data.  Raises DataError for other data."""
        place, prepared = cls.first(rank).cursor, rank.prepared
        with telling(info):
            cursor = Cursor.from_state(
                bytes.fromhex(info.meta["cursor"]),
                rows=place.rows,
                global_batch=place.global_batch,
                data_digest=place.data_digest,
                earlier=prepared.order.digest(prepared.digest),
                order=place.order,
            )
            return cls(cursor, RunState.from_json(info.meta["run"]))


def assembled(rank: Rank, info: CheckpointInfo | None, progress: Progress) -> Loop:
    """The loop that goes on from the checkpoint `info`, or without one from the first step."""
    config, world = rank.fitted, rank.world
    position = _position(rank, info)
    learner = a_learner(rank.task, _model(rank, is_first=info is None), config.optimization, world)
    if info is not None:
        learner.load(rank.store, info)
    reporter = _reporter(rank, progress, position.state)
    announce(rank, info, reporter, position.state.step)
    batch, is_private = config.optimization.global_batch_size, rank.requested.is_private
    reporter.records(record_counts(rank.prepared.counts, batch, is_private=is_private))
    return Loop(
        config=config,
        world=world,
        learner=learner,
        train_rows=rank.prepared.train,
        validation_rows=rank.prepared.validation,
        cursor=position.cursor,
        state=position.state,
        savepoints=_savepoints(rank),
        reporter=reporter,
        stop_requested=lambda: rank.stop.is_set,
        profiler=_profiler(rank, reporter),
    )


def _position(rank: Rank, info: CheckpointInfo | None) -> Position:
    if info is None:
        return Position.first(rank)
    position = Position.of(rank, info)
    refuse_ended(rank, info, position.state)
    if changed_settings(rank, info) and not is_own(info) and not lengthens(rank, info):
        position.state.forget_best()
    return position


def a_learner(task: Task[Any], model: nn.Module, optimization: OptimizationSpec, world: World) -> Learner:
    """The learner of `model`, which is not trained yet.  It changes `model`."""
    drop_out(model, optimization.dropout)
    recompute_activations(model, optimization.recompute)
    loss = task.loss(model, autocast(optimization.precision, world.device), optimization)
    return learner_of(loss, optimization, world)


def announce(rank: Rank, info: CheckpointInfo | None, reporter: Reporter, step: int) -> None:
    """Emit the events of a run's beginning: what was refused, chosen, resumed, changed and adapted."""
    config = rank.fitted
    announce_refused(rank, reporter)
    if info is None and rank.requested.method.type is MethodType.AUTO:
        strategy, records = config.optimization.strategy.value, rank.prepared.counts["train"].records
        reporter.event("method", type=rank.method.type.value, records=records, strategy=strategy)
    if info is not None:
        saved_by = None if is_own(info) else info.meta["jobUid"]
        reporter.event("resumed", step=info.step, attempt=attempt(), savedBy=saved_by)
        if changed := changed_settings(rank, info):
            reporter.event("config_changed", step=info.step, settings=described(changed))
    if rank.rungs > saved_rungs(rank.requested, info):
        reason = "memory ran out" if rank.rungs > rank.least_rungs else "too large for the memory"
        facts = settings(config) | {"reason": reason, "result": promise(rank.requested, config)}
        reporter.event("adapted", step=step, rung=rank.rungs, **facts)


def announce_refused(rank: Rank, reporter: Reporter) -> None:
    """Emit an event for each checkpoint that the last search refused."""
    for refused in rank.store.refused:
        reporter.event("refused", step=refused.step, reason=refused.reason)


def _model(rank: Rank, *, is_first: bool) -> nn.Module:
    config, device, seed = rank.fitted, rank.world.device, rank.fitted.optimization.seed
    torch.manual_seed(seed * 1_000_003 + rank.world.rank)  # dropout does not draw from it
    # FSDP moves each layer when it shards it: there may be no room for all of them whole.
    place = torch.device("cpu") if config.optimization.strategy is Strategy.FSDP else device
    # Of images, the model has the names of the job's classes, which are private with the data.
    guard = understood("the base model", quoting=not config.is_private)
    with guard if config.model.base is not None else nullcontext():
        model = rank.task.model()
        if is_first and config.model.base is not None:
            refuse_non_finite(model)
        return trainable(model, rank.method, seed, place, compute_dtype(config.optimization.precision, device))


def _savepoints(rank: Rank) -> Savepoints:
    policy = rank.fitted.checkpoint
    exchange = rank.world.beside().gather if policy.asynchronous else None
    saver = Saver(rank.store, policy.retention, exchange, waits_for_copy=policy.wait_for_copy)
    return Savepoints(saver, policy, rank.origin)


def _reporter(rank: Rank, progress: Progress, state: RunState) -> Reporter:
    if not rank.world.is_lead:
        return Silent()
    return Reporter(rank.paths, progress, state.history, _yardstick(rank), rank.task.unit)


def _yardstick(rank: Rank) -> Yardstick | None:
    """None if the peak of the device, or the FLOPs of the model, are not known."""
    if rank.dimensions is None:
        return None
    gpu = gpu_at_work(rank.world.device, rank.fitted.optimization.precision)
    return Yardstick.of(gpu, rank.fitted, rank.dimensions)


def _profiler(rank: Rank, reporter: Reporter) -> Profiler:
    trace = Scratch(rank.paths.scratch).trace(rank.world.rank)
    return Profiler(trace, rank.profile.take, partial(reporter.own, rank=rank.world.rank))
