"""A run from prepared data to exported model, on one rank."""

from dataclasses import asdict, replace
from functools import partial

import torch
from torch import nn

from deepseek_trainer.base_model.source import base_digest, dimensions_of
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.budget.ladder import promise, settings
from deepseek_trainer.budget.perf import Yardstick
from deepseek_trainer.checkpoints.saver import Saver
from deepseek_trainer.checkpoints.store import CheckpointInfo, CheckpointStore
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.method import MethodType
from deepseek_trainer.contract.names import Paths, metrics_port, node_address
from deepseek_trainer.contract.optimization import Strategy
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.dataset import Prepared, open_prepared
from deepseek_trainer.language.conversation import as_text
from deepseek_trainer.model.causal_lm import load_model
from deepseek_trainer.model.method import trainable
from deepseek_trainer.model.precision import compute_dtype
from deepseek_trainer.result.export import Results, export
from deepseek_trainer.result.report import Answer
from deepseek_trainer.run.assessment import assessed
from deepseek_trainer.run.climb import agreed_rungs, climbing, saved_rungs
from deepseek_trainer.run.preflight import rungs_to_fit
from deepseek_trainer.run.rank import Json, Rank, attempt, job_uid
from deepseek_trainer.telemetry.meter import gpu_at_work
from deepseek_trainer.telemetry.profiler import Profiler
from deepseek_trainer.telemetry.progress import Progress, serve
from deepseek_trainer.telemetry.reporter import Reporter, Silent
from deepseek_trainer.training.learner import Learner
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.state import RunState, refuse_other_base
from deepseek_trainer.worker.distributed import World, joined
from deepseek_trainer.worker.process import ProfileFlag, StopFlag, StopRequested
from deepseek_trainer.worker.scratch import Scratch
from deepseek_trainer.worker.training_config import load_config
from deepseek_trainer.worker.vaults import checkpoint_vault, data_vault


def run(paths: Paths, stop: StopFlag, profile: ProfileFlag, restarts: int) -> None:
    """Train, evaluate, export.  Raises StopRequested when a stop was agreed and the state is saved."""
    config = load_config(paths.config)
    with joined() as world:
        progress = Progress()
        if world.is_lead:
            progress.update(stage="preparing", restartCount=restarts)
            serve(progress, node_address(), metrics_port())
        vault = data_vault(config, paths)
        prepared, base = open_prepared(config, paths, vault), base_digest(config, paths, vault)
        rank = Rank(config, paths, world, stop, profile, prepared, _store(config, paths, world), base)
        scratch = Scratch(paths.scratch)
        try:
            _train_and_tell(rank, progress, scratch)
        except StopRequested:
            scratch.stopped.touch()  # before the ranks part: one that fails in that has saved all the same
            raise


def _train_and_tell(rank: Rank, progress: Progress, scratch: Scratch) -> None:
    try:
        info = checkpoint_to_resume(rank)
        least = max(rank.world.gather(rungs_to_fit(rank.wanted, _dimensions(rank), rank.world.device)))
        rungs = max(least, agreed_rungs(rank.asked, info, scratch, rank.world))
        rank = replace(rank, least_rungs=least, rungs=rungs)
        loop = _loop(rank, info, progress)
        with climbing(rank.wanted, rungs, scratch):
            _evaluate_before(rank, loop)
            loop.run()
        _export(rank, loop)
    finally:
        if rank.world.is_lead:
            scratch.leave_progress(progress.to_json())


def _export(rank: Rank, loop: Loop) -> None:
    """The weights that were chosen, measured once more."""
    step, weights = _choose_weights(rank, loop)
    after = assessed(loop, rank.prepared, loop.evaluation or loop.measure())
    loop.reporter.event("result", weights=weights, step=step, **after["scores"], before=loop.state.before["scores"])
    loop.leave_if_stopped()
    with loop.learner.finished() as model:
        if rank.world.is_lead:
            loop.reporter.stage("exporting")
            results = _results(rank, loop, weights, after)
            target = export(model, rank.prepared.tokenizer, rank.config, rank.paths, results)
            loop.reporter.event("exported", path=str(target))
            loop.reporter.stage("done")
        loop.reporter.close()
        rank.world.barrier()


def _loop(rank: Rank, info: CheckpointInfo | None, progress: Progress) -> Loop:
    """The loop where it stands: at the checkpoint, or at the first step."""
    config, world = rank.config, rank.world
    learner = Learner.of(_model(rank), config.optimization, world, config.preference)
    cursor = Cursor(
        seed=config.optimization.seed,
        rows=len(rank.prepared.train),
        global_batch=config.optimization.global_batch_size,
        data_digest=rank.prepared.order.digest(rank.prepared.digest),
        order=rank.prepared.order,
    )
    state = RunState()
    if info is not None:
        learner.load(rank.store, info)
        state = RunState.from_json(info.meta["run"])
        cursor = Cursor.from_state(
            bytes.fromhex(info.meta["cursor"]),
            rows=cursor.rows,
            global_batch=cursor.global_batch,
            data_digest=cursor.data_digest,
            order=cursor.order,
        )
    reporter = Reporter(rank.paths, progress, state.history, _yardstick(rank)) if world.is_lead else Silent()
    for refused in rank.store.refused:
        reporter.event("refused", step=refused.step, reason=refused.reason)
    if info is None and config.method.type is MethodType.AUTO:
        strategy, records = config.optimization.strategy.value, rank.prepared.counts["train"].records
        reporter.event("method", type=rank.method.type.value, records=records, strategy=strategy)
    if info is not None:
        reporter.event("resumed", step=info.step, attempt=attempt())
        if info.meta.get("configDigest") not in (None, rank.origin["configDigest"]):
            reporter.event("config_changed", step=info.step)
    if rank.rungs > saved_rungs(rank.asked, info):
        reason = "memory ran out" if rank.rungs > rank.least_rungs else "too large for the memory"
        told = settings(config) | {"reason": reason, "result": promise(rank.asked, config)}
        reporter.event("adapted", step=state.step, rung=rank.rungs, **told)
    exchange = world.beside().gather if config.checkpoint.asynchronous else None
    waits = config.checkpoint.wait_for_copy
    saver = Saver(rank.store, config.checkpoint.retention, exchange, waits_for_copy=waits)
    trace, tell = Scratch(rank.paths.scratch).trace(world.rank), partial(reporter.own, rank=world.rank)
    return Loop(
        config, world, learner, rank.prepared.train, rank.prepared.validation,
        cursor, state, saver, reporter, lambda: rank.stop.is_set, rank.origin,
        token_bytes=None if config.preference else rank.prepared.token_bytes(),
        profiler=Profiler(trace, rank.profile.take, tell),
    )  # fmt: skip


def _yardstick(rank: Rank) -> Yardstick | None:
    """None on devices whose peak is not known."""
    gpu = gpu_at_work(rank.world.device, rank.config.optimization.precision)
    return Yardstick.of(gpu, rank.settled, _dimensions(rank))


def _dimensions(rank: Rank) -> Dimensions:
    return dimensions_of(rank.asked, rank.paths, data_vault(rank.asked, rank.paths))


def _store(config: TrainingConfig, paths: Paths, world: World) -> CheckpointStore:
    return CheckpointStore(
        paths.checkpoints,
        checkpoint_vault(config, paths),
        rank=world.rank,
        world_size=world.size,
        attempt=attempt(),
        exchange=world.gather,
    )


def _model(rank: Rank) -> nn.Module:
    config, device, seed = rank.config, rank.world.device, rank.config.optimization.seed
    torch.manual_seed(seed * 1_000_003 + rank.world.rank)  # dropout differs between ranks
    vault = data_vault(config, rank.paths)
    cpu = torch.device("cpu")
    model = load_model(config, rank.paths, vault, cpu)
    # FSDP moves each layer as it shards it: all of them may not fit.
    place = cpu if config.optimization.strategy is Strategy.FSDP else device
    return trainable(model, rank.method, seed, place, compute_dtype(config.optimization.precision, device))


def checkpoint_to_resume(rank: Rank) -> CheckpointInfo | None:
    """The newest checkpoint; until the job has written one of its own, the one that resumeFrom asks for.

    Raises ConfigError where it was trained beside another base model than the job's.
    """
    info = _asked_for(rank)
    if info is not None and rank.learns_beside_base:
        refuse_other_base(rank.base_digest, info)
    return info


def _asked_for(rank: Rank) -> CheckpointInfo | None:
    wanted = rank.config.checkpoint.resume_from
    if wanted == "Latest":
        return rank.store.latest()
    try:
        newest = rank.store.latest()
    except IntegrityError:
        if attempt() > 1:
            raise
        newest = None  # on the first attempt resumeFrom is the way out of a damaged store
    if newest is None or newest.meta["jobUid"] != job_uid():
        rank.store.set_aside(after_step=-1 if wanted == "None" else int(wanted))
    return rank.store.latest()


def _evaluate_before(rank: Rank, loop: Loop) -> None:
    """What the model can do before the first step; kept with the run, so that a restart does not ask again."""
    if loop.state.before:
        return
    loop.reporter.stage("evaluating")
    result = loop.measure()
    loop.state.before = assessed(loop, rank.prepared, result)
    loop.reporter.evaluation(0, 0.0, result)


def _choose_weights(rank: Rank, loop: Loop) -> tuple[int, str]:
    """Go back to the weights with the lowest validation loss, where they were kept; of which step they are, and why."""
    best, last = loop.state.best_step, loop.state.step
    if best == last:
        return last, f"of step {last}, the last, with the lowest validation loss"
    if not rank.config.checkpoint.retention.keep_best or best is None:
        return last, f"of step {last}, the last"
    info = rank.store.at(best)
    for refused in rank.store.refused:
        loop.reporter.event("refused", step=refused.step, reason=refused.reason)
    if info is None:
        why = f"step {best} had a lower validation loss, but its checkpoint cannot be used"
        return last, f"of step {last}, the last: {why}"
    loop.learner.load_weights(rank.store, info)
    loop.evaluation = None
    return best, f"of step {best}, with the lowest validation loss; the last was step {last}"


def _results(rank: Rank, loop: Loop, weights: str, after: Json) -> Results:
    before, prompts = loop.state.before, rank.prepared.prompts
    return Results(
        events=loop.reporter.history,
        weights=weights,
        method=rank.method,
        data={"digest": rank.prepared.digest}
        | {name: asdict(counts) for name, counts in rank.prepared.counts.items()}
        | {"classes" if rank.config.data.balance_by else "sources": _drawn(rank.prepared, loop.cursor.consumed)},
        before=before["scores"],
        after=after["scores"],
        answers=[
            Answer(as_text(prompt.prompt), prompt.response, old, new)
            for prompt, old, new in zip(prompts, before["answers"], after["answers"], strict=False)
        ],
    )


def _drawn(prepared: Prepared, consumed: int) -> Json:
    """What each source or class gave: its share of the rows, and how often its own were passed over."""
    shares = [slots / prepared.order.block for slots in prepared.order.slots]
    return {
        source.name: asdict(source.counts) | {"share": share, "passes": round(share * consumed / source.counts.rows, 2)}
        for source, share in zip(prepared.sources, shares, strict=False)
    }
