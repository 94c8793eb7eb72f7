"""A run from prepared data to exported model, on one rank."""

from dataclasses import replace
from typing import Any

from deepseek_trainer import tasks
from deepseek_trainer.base_model.source import base_digest, dimensions_of
from deepseek_trainer.checkpoints.legs import legs_from, trained
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import Paths, metrics_port, node_address
from deepseek_trainer.data.dataset import Prepared, open_prepared, prepared_directory
from deepseek_trainer.result.export import Results, export
from deepseek_trainer.run.assembly import announce_refused, assembled
from deepseek_trainer.run.assessment import NOTHING_MEASURED, assessed
from deepseek_trainer.run.climb import agreed_rungs, climbing
from deepseek_trainer.run.judgement import judge, praise, refuse_unmeasurable
from deepseek_trainer.run.preflight import rungs_to_fit
from deepseek_trainer.run.rank import Json, Rank, attempt, job_uid
from deepseek_trainer.run.resume import checkpoint_to_resume
from deepseek_trainer.telemetry.progress import Progress, serve
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.schedule import refuse_endless_warmup
from deepseek_trainer.worker.distributed import World, joined
from deepseek_trainer.worker.failure import discreet
from deepseek_trainer.worker.process import ProfileFlag, StopFlag, StopRequested
from deepseek_trainer.worker.scratch import Scratch
from deepseek_trainer.worker.training_config import load_config
from deepseek_trainer.worker.vaults import checkpoint_vault, data_vault


def run(paths: Paths, stop: StopFlag, profile: ProfileFlag, restarts: int) -> None:
    """Train, evaluate, export.  Raises StopRequested when a stop was agreed and the state is saved."""
    config = load_config(paths.config)
    with discreet(config.is_private), joined() as world:
        progress = Progress()
        if world.is_lead:
            progress.update(stage="preparing", restartCount=restarts)
            serve(progress, node_address(), metrics_port())
        rank = _started(config, paths, world, stop, profile)
        scratch = Scratch(paths.scratch)
        try:
            _train_and_export(rank, progress, scratch)
        except StopRequested:
            scratch.stopped.touch()  # before the ranks part: a rank that fails in parting has saved all the same
            raise
        finally:
            if world.is_lead:
                scratch.leave_progress(progress.to_json())


def _started(config: TrainingConfig, paths: Paths, world: World, stop: StopFlag, profile: ProfileFlag) -> Rank:
    vault = data_vault(config, paths)
    directory = prepared_directory(paths, vault)
    task = tasks.of(config, paths, vault, directory)
    prepared = open_prepared(config, directory, vault, task)
    refuse_endless_warmup(config.optimization, len(prepared.train))
    return Rank(
        requested=config.with_rate(prepared.counts["train"].records),
        paths=paths,
        world=world,
        stop=stop,
        profile=profile,
        task=task,
        prepared=prepared,
        store=_store(config, paths, world),
        base_digest=base_digest(config, paths, vault),
        dimensions=dimensions_of(config, paths, vault),
    )


def _store(config: TrainingConfig, paths: Paths, world: World) -> CheckpointStore:
    return CheckpointStore(
        paths.checkpoints,
        checkpoint_vault(config, paths),
        rank=world.rank,
        world_size=world.size,
        attempt=attempt(),
        exchange=world.gather,
    )


def _train_and_export(rank: Rank, progress: Progress, scratch: Scratch) -> None:
    info = checkpoint_to_resume(rank)
    least = max(rank.world.gather(rungs_to_fit(rank.resolved, rank.dimensions, rank.world.device)))
    rungs = max(least, agreed_rungs(rank.requested, info, scratch, rank.world))
    rank = replace(rank, least_rungs=least, rungs=rungs, legs=legs_from(info, job_uid(), rank.requested))
    loop = assembled(rank, info, progress)
    with climbing(rank.resolved, rungs, scratch):
        _evaluate_before(rank, loop)
        loop.run()
    _export(rank, loop)


def _evaluate_before(rank: Rank, loop: Loop) -> None:
    """Assess the model before the first step.  The run keeps the result, so that a restart does not repeat it."""
    if loop.state.before:
        return
    if not loop.holds_out:
        loop.state.before = NOTHING_MEASURED
        return
    loop.reporter.stage("evaluating")
    result = loop.measure()
    refuse_unmeasurable(result.loss, loop)
    loop.state.before = assessed(loop, rank.task, result)
    loop.reporter.evaluation(0, 0.0, result)


def _export(rank: Rank, loop: Loop) -> None:
    """Choose the weights, assess the model with them, and export it."""
    step, weights = _choose_weights(rank, loop)
    after = assessed(loop, rank.task, loop.evaluation or loop.measure()) if loop.holds_out else NOTHING_MEASURED
    judge(rank, loop, step, after["scores"])
    scores, before = _nameless(after["scores"]), _nameless(loop.state.before["scores"])
    loop.reporter.event("result", weights=weights, step=step, **scores, before=before)
    loop.leave_if_stopped()
    with loop.learner.finished() as model:
        if rank.world.is_lead:
            loop.reporter.stage("exporting")
            results = _results(rank, loop, (step, weights), after)
            target = export(model, rank.task, rank.fitted, rank.paths, results)
            loop.reporter.event("exported", path=str(target))
            loop.reporter.stage("done")
        loop.reporter.close()
        rank.world.barrier()
    rank.store.mark_exported()


def _nameless(scores: Json) -> Json:
    """Without the names of classes: they may come from the data, and nobody seals the event log."""
    found = {name: value for name, value in scores.get("classification", {}).items() if name != "labels"}
    return scores | ({"classification": found} if found else {})


def _choose_weights(rank: Rank, loop: Loop) -> tuple[int, str]:
    """Go back to the weights with the lowest validation loss, if they were kept.  Returns their step, and why."""
    best, last = loop.state.best_step, loop.state.step
    if best == last:
        return last, f"of step {last}, the last, {praise(loop.state)}"
    if not rank.fitted.checkpoint.retention.keep_best or best is None:
        return last, f"of step {last}, the last"
    info = rank.store.at(best)
    announce_refused(rank, loop.reporter)
    if info is None:
        why = f"step {best} had a lower validation loss, but its checkpoint cannot be used"
        return last, f"of step {last}, the last: {why}"
    loop.learner.load_weights(rank.store, info)
    loop.evaluation = None
    return best, f"of step {best}, {praise(loop.state)}; the last was step {last}"


def _results(rank: Rank, loop: Loop, chosen: tuple[int, str], after: Json) -> Results:
    before, prepared = loop.state.before, rank.prepared
    step, weights = chosen
    drawn = "classes" if rank.fitted.data.balance_by else "sources"
    return Results(
        events=loop.reporter.history,
        weights=weights,
        step=step,
        commit=rank.store.newest_digest(),
        requested=rank.requested.method.type,
        trained=trained(step, rank.legs, rank.requested),
        data={"name": prepared.name}
        | {split: counts.to_json() for split, counts in prepared.counts.items()}
        | {drawn: _drawn(prepared, loop.cursor.consumed)},
        findings=loop.reporter.findings,
        before=before["scores"],
        after=after["scores"],
        answers=rank.task.samples(before["answers"], after["answers"]),
    )


def _drawn(prepared: Prepared[Any], consumed: int) -> Json:
    """What each source or class gave: its share of all rows, and how many passes over its own rows there were."""
    shares = [slots / prepared.order.block for slots in prepared.order.slots]
    return {
        source.name: source.counts.to_json()
        | {"share": share, "passes": round(share * consumed / source.counts.rows, 2)}
        for source, share in zip(prepared.sources, shares, strict=False)
    }
