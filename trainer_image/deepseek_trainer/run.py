"""A run from prepared data to exported model, on one rank."""

import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from deepseek_trainer.adapters import with_adapters
from deepseek_trainer.checkpoint import CheckpointInfo, CheckpointStore
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.method import LoraSpec, MethodType
from deepseek_trainer.contract.names import ENV_ATTEMPT, ENV_METRICS_PORT, ENV_NODE_ADDRESS, ENV_RUN_ID, Paths
from deepseek_trainer.cursor import Cursor
from deepseek_trainer.dataset import Prepared, open_prepared
from deepseek_trainer.distributed import World, joined
from deepseek_trainer.evaluate import EvalResult, Reference, answer, score_answers
from deepseek_trainer.events import finite
from deepseek_trainer.export import Results, export
from deepseek_trainer.loop import Loop
from deepseek_trainer.model import load_model
from deepseek_trainer.model_source import dimensions_of
from deepseek_trainer.optimizer import adamw
from deepseek_trainer.preflight import refuse_too_large
from deepseek_trainer.process import StopFlag, StopRequested
from deepseek_trainer.progress import Progress, serve
from deepseek_trainer.report import Answer
from deepseek_trainer.reporter import Reporter, Silent
from deepseek_trainer.saver import Saver
from deepseek_trainer.scratch import Scratch
from deepseek_trainer.state import RunState, load_state, load_weights
from deepseek_trainer.tokenizer import prompt_ids, text_ids
from deepseek_trainer.training_config import config_digest, load_config
from deepseek_trainer.vault import Vault

Json = dict[str, Any]

ANSWERED_AT_ONCE = 16  # prompts in one batch of a rank


@dataclass(frozen=True, slots=True)
class Rank:
    """What every part of a run needs to know."""

    config: TrainingConfig
    paths: Paths
    world: World
    stop: StopFlag
    prepared: Prepared
    store: CheckpointStore


def run(paths: Paths, stop: StopFlag, restarts: int) -> None:
    """Train, evaluate, export.  Raises StopRequested when a stop was agreed and the state is saved."""
    config = load_config(paths.config)
    with joined() as world:
        progress = Progress()
        if world.is_lead:
            progress.update(stage="preparing", restartCount=restarts)
            serve(progress, os.environ[ENV_NODE_ADDRESS], int(os.environ[ENV_METRICS_PORT]))
        prepared = open_prepared(config, paths, Vault.for_data(config, paths))
        rank = Rank(config, paths, world, stop, prepared, _store(config, paths, world))
        scratch = Scratch(paths.scratch)
        try:
            _train_and_tell(rank, progress, scratch)
        except StopRequested:
            scratch.stopped.touch()  # before the ranks part: one that fails in that has saved all the same
            raise


def _train_and_tell(rank: Rank, progress: Progress, scratch: Scratch) -> None:
    try:
        _train_and_export(rank, progress)
    finally:
        if rank.world.is_lead:
            scratch.leave_progress(progress.to_json())


def _train_and_export(rank: Rank, progress: Progress) -> None:
    loop = _loop(rank, progress)
    _evaluate_before(rank, loop)
    loop.run()
    weights = _choose_weights(rank, loop)
    after = _assessed(rank, loop, loop.evaluation or loop.measure())
    loop.reporter.event("result", weights=weights, **after["scores"])
    loop.leave_if_stopped()
    if rank.world.is_lead:
        loop.reporter.stage("exporting")
        results = _results(rank, loop, weights, after)
        target = export(loop.model, rank.prepared.tokenizer, rank.config, rank.paths, results)
        loop.reporter.event("exported", path=str(target))
        loop.reporter.stage("done")
    loop.reporter.close()
    rank.world.barrier()


def _loop(rank: Rank, progress: Progress) -> Loop:
    """The loop where it stands: at the newest checkpoint, or at the first step."""
    config, world = rank.config, rank.world
    model = _model(config, rank.paths, world)
    optimizer = adamw(model, config.optimization)
    cursor = Cursor(
        seed=config.optimization.seed,
        rows=len(rank.prepared.train),
        global_batch=config.optimization.global_batch_size,
        data_digest=rank.prepared.digest,
    )
    state = RunState()
    if (info := checkpoint_to_resume(rank)) is not None:
        tensors, meta = rank.store.load(info)
        load_state(model, optimizer, tensors, world)
        state = RunState.from_json(meta["run"])
        cursor = Cursor.from_state(
            bytes.fromhex(meta["cursor"]),
            rows=cursor.rows,
            global_batch=cursor.global_batch,
            data_digest=cursor.data_digest,
        )
    reporter = Reporter(rank.paths, progress, state.history) if world.is_lead else Silent()
    for refused in rank.store.refused:
        reporter.event("refused", step=refused.step, reason=refused.reason)
    if info is not None:
        reporter.event("resumed", step=info.step, attempt=_attempt())
        if info.meta.get("configDigest") not in (None, config_digest(config)):
            reporter.event("config_changed", step=info.step)
    exchange = world.beside().gather if config.checkpoint.asynchronous else None
    waits = config.checkpoint.wait_for_copy
    saver = Saver(rank.store, config.checkpoint.retention, exchange, waits_for_copy=waits)
    return Loop(
        config, world, model, optimizer, rank.prepared.train, rank.prepared.validation,
        cursor, state, saver, reporter, lambda: rank.stop.is_set, _job_uid(),
    )  # fmt: skip


def _store(config: TrainingConfig, paths: Paths, world: World) -> CheckpointStore:
    return CheckpointStore(
        paths.checkpoints,
        Vault.for_checkpoints(config, paths),
        rank=world.rank,
        world_size=world.size,
        attempt=_attempt(),
        exchange=world.gather,
    )


def _model(config: TrainingConfig, paths: Paths, world: World) -> nn.Module:
    torch.manual_seed(config.optimization.seed * 1_000_003 + world.rank)  # dropout differs between ranks
    vault = Vault.for_data(config, paths)
    refuse_too_large(config, dimensions_of(config, paths, vault), world.device)
    model: nn.Module = load_model(config, paths, vault, world.device)
    if config.method.type is MethodType.FULL:
        return model
    adapted: nn.Module = with_adapters(model, config.method.lora or LoraSpec(), config.optimization.seed)
    return adapted


def checkpoint_to_resume(rank: Rank) -> CheckpointInfo | None:
    """The newest checkpoint; until the job has written one of its own, the one that resumeFrom asks for."""
    wanted = rank.config.checkpoint.resume_from
    if wanted == "Latest":
        return rank.store.latest()
    try:
        newest = rank.store.latest()
    except IntegrityError:
        if _attempt() > 1:
            raise
        newest = None  # on the first attempt resumeFrom is the way out of a damaged store
    if newest is None or newest.meta["jobUid"] != _job_uid():
        rank.store.set_aside(after_step=-1 if wanted == "None" else int(wanted))
    return rank.store.latest()


def _evaluate_before(rank: Rank, loop: Loop) -> None:
    """What the model can do before the first step; kept with the run, so that a restart does not ask again."""
    if loop.state.before:
        return
    loop.reporter.stage("evaluating")
    result = loop.measure()
    loop.state.before = _assessed(rank, loop, result)
    loop.reporter.evaluation(0, 0.0, result)


def _assessed(rank: Rank, loop: Loop, result: EvalResult) -> Json:
    """{"scores": numbers, "answers": texts} of the model as it is, of which `result` is the loss."""
    loop.reporter.stage("evaluating")
    scores: Json = {"loss": finite(result.loss), "perplexity": result.perplexity}
    prompts = rank.prepared.prompts[: rank.config.evaluation.generations]
    answers = _answers(rank, loop, [prompt.prompt for prompt in prompts])
    if prompts and _asks(rank):
        score = score_answers(answers, [Reference(p.response, p.must_contain) for p in prompts])
        scores |= {"right": score.right, "asked": score.total}
        loop.reporter.event("answers", step=loop.state.step, right=score.right, asked=score.total)
    return {"scores": scores, "answers": answers}


def _answers(rank: Rank, loop: Loop, questions: list[str]) -> list[str]:
    """Answers to all questions, in order, on every rank; each rank generates its share.

    Raises StopRequested on a stop, which is heard between batches.
    """
    answers: list[str] = []
    for start in range(0, len(questions), ANSWERED_AT_ONCE * rank.world.size):
        loop.leave_if_stopped()
        answers += _shared_answers(rank, loop, questions[start : start + ANSWERED_AT_ONCE * rank.world.size])
    return answers


def _shared_answers(rank: Rank, loop: Loop, questions: list[str]) -> list[str]:
    world = rank.world
    with loop.autocast:
        mine = answer(
            loop.model,
            rank.prepared.tokenizer,
            questions[world.rank :: world.size],
            rank.config.evaluation.max_new_tokens,
            encode=prompt_ids if _asks(rank) else text_ids,
        )
    shares = world.gather(mine)
    return [shares[i % world.size][i // world.size] for i in range(len(questions))]


def _asks(rank: Rank) -> bool:
    """Whether prompts are questions; else they are openings of texts, and no continuation is right or wrong."""
    return rank.config.data.format is DataFormat.INSTRUCTION


def _choose_weights(rank: Rank, loop: Loop) -> str:
    """Go back to the weights with the lowest validation loss, where they were kept; which weights they are, and why."""
    best, last = loop.state.best_step, loop.state.step
    if best == last:
        return f"of step {last}, the last, with the lowest validation loss"
    if not rank.config.checkpoint.retention.keep_best or best is None:
        return f"of step {last}, the last"
    info = rank.store.at(best)
    for refused in rank.store.refused:
        loop.reporter.event("refused", step=refused.step, reason=refused.reason)
    if info is None:
        return f"of step {last}, the last: step {best} had a lower validation loss, but its checkpoint cannot be used"
    load_weights(loop.model, rank.store.load(info)[0])
    loop.evaluation = None
    return f"of step {best}, with the lowest validation loss; the last was step {last}"


def _results(rank: Rank, loop: Loop, weights: str, after: Json) -> Results:
    before, prompts = loop.state.before, rank.prepared.prompts
    return Results(
        events=loop.reporter.history,
        weights=weights,
        data={"digest": rank.prepared.digest} | {name: asdict(counts) for name, counts in rank.prepared.counts.items()},
        before=before["scores"],
        after=after["scores"],
        answers=[
            Answer(prompt.prompt, prompt.response, old, new)
            for prompt, old, new in zip(prompts, before["answers"], after["answers"], strict=False)
        ],
    )


def _job_uid() -> str:
    return os.environ[ENV_RUN_ID].rpartition("-")[0]


def _attempt() -> int:
    return int(os.environ[ENV_ATTEMPT])
