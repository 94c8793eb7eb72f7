"""What each of several ranks does in test_ranks.py; here, because its processes must be able to import it."""

import hashlib
import math
import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.errors import JobError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.evaluation.evaluate import EvalResult
from deepseek_trainer.model.loading import scratch_model, transformer
from deepseek_trainer.model.modes import answering
from deepseek_trainer.run.assessment import assessed
from deepseek_trainer.storage.durable import StorageError
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.prompts import Prompt
from deepseek_trainer.tasks.language.task import LanguageTask
from deepseek_trainer.telemetry.meter import Meter
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.worker.distributed import World
from deepseek_trainer.worker.process import StopFlag
from support.builders.loop import (
    LENGTH,
    TINY,
    RandomRows,
    a_learner,
    a_loop,
    a_model,
    an_adapted_model,
    config,
    run_until_stopped,
    weights,
)
from support.builders.model import a_tokenizer, tiny_model
from support.builders.vault import a_state
from support.ranks.gloo import store_of


def interrupted_run(
    world: World, root: Path, model: Callable[[], nn.Module], changes: dict[str, Any]
) -> tuple[bool, bool, bool, bool]:
    """Whether a run that was stopped has losses, results and weights of one that was not, and other ranks' weights."""
    settings = config(globalBatchSize=2 * world.size, **changes)
    whole = a_loop(settings, root / "whole", world=world, model=model())
    whole.run()
    run_until_stopped(a_loop(settings, root / "parts", world=world, stop_after=2, model=model()))
    resumed = a_loop(settings, root / "parts", world=world, model=model())
    resumed.run()
    expected, found = weights(whole), weights(resumed)
    same_weights = all(torch.equal(value, expected[name]) for name, value in found.items())
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in found.values())).hexdigest()
    return (
        resumed.reporter.losses == whole.reporter.losses[2:],
        resumed.reporter.results == whole.reporter.results,
        same_weights,
        len(set(world.gather(digest))) == 1,
    )


def stop_during_an_evaluation(world: World, root: Path) -> tuple[int, int]:
    """Only rank 1, in its only batch of three, gets a SIGTERM; (step of the checkpoint, batches that were read)."""
    loop, stop = (
        a_loop(config(evaluation={"intervalSteps": 2}, microBatchSize=1), root, world=world),
        StopFlag.on_signal(),
    )
    read: list[int] = []

    def before_batch() -> None:
        read.append(loop.state.step)
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.validation_rows.before_batch = before_batch
    loop.stop_requested = lambda: stop.is_set
    run_until_stopped(loop)
    info = loop.savepoints.saver.store.latest()
    assert info is not None
    return info.step, len(read)


def weights_of_32_rows(world: World, root: Path, micro_batch: int) -> dict[str, Tensor]:
    """After three steps of 32 rows, cut into such micro-batches."""
    settings = config(globalBatchSize=32, microBatchSize=micro_batch, maxSteps=3, warmupSteps=0)
    loop = a_loop(settings, root, world=world)
    loop.run()
    return weights(loop)


def not_finite_on_rank_1(world: World, root: Path, strategy: str) -> dict[str, Any]:
    """A run in whose third step one activation of rank 1 is NaN: what was skipped, and which steps changed weights."""
    loop = a_loop(config(strategy=strategy), root, world=world)
    norm = transformer(loop.model).model.norm
    norm.register_forward_hook(
        lambda _module, _inputs, output: output * math.nan if (world.rank, loop.state.step) == (1, 2) else output
    )
    digests = {0: digest_of(loop)}
    loop.reporter.step = lambda result, _tokens, _seconds: digests.update({result.step: digest_of(loop)})  # type: ignore[method-assign]
    loop.run()
    changed = [step for step in range(1, 7) if digests[step] != digests[step - 1]]
    return {
        "skipped": [fields["step"] for event, fields in loop.reporter.events if event == "skipped"],
        "changed": changed,
    }


def rolled_back(world: World, root: Path, strategy: str) -> dict[str, Any]:
    """A run in whose fourth step the last rank's loss is NaN, which no step may be: it goes back to the second one.

    Its losses, what happened, whether the weights were those of the second step again, and the rows it has consumed.
    """
    changes = {"strategy": strategy, "checkpoint": {"interval": {"steps": 2}}, "guard": {"maxSkips": 0}}
    loop = a_loop(config(**changes), root, world=world)
    is_last = world.rank == world.size - 1
    transformer(loop.model).model.norm.register_forward_hook(
        lambda _module, _inputs, output: output * math.nan if is_last and loop.cursor.consumed == 3 * 4 else output
    )
    digests: list[str] = []
    loop.reporter.step = lambda result, _tokens, _seconds: (  # type: ignore[method-assign]
        loop.reporter.losses.append(result.loss),
        digests.append(digest_of(loop)),
    )
    loop.run()
    return {
        "losses": loop.reporter.losses,
        "events": [(event, fields.get("to")) for event, fields in loop.reporter.events],
        "weights of steps": [digests.index(digest) + 1 for digest in digests],
        "consumed": loop.cursor.consumed,
    }


def digest_of(loop: Loop) -> str:
    """Of the weights, or the shards of them, that this rank has; DeepSpeed's are beside the parameters."""
    held = [getattr(p, "ds_tensor", p) for p in loop.model.parameters()]
    whole_or_own = [p.to_local() if isinstance(p, DTensor) else p for p in held]
    return hashlib.sha256(b"".join(part.detach().numpy().tobytes() for part in whole_or_own)).hexdigest()


def what_it_can_do(world: World, root: Path) -> dict[str, Any]:
    """What a model answers to five prompts, and which of three labels it chooses for forty."""
    labels = ("a pump", "a valve", "12 bar")
    prompts = tuple(Prompt(f"what is {i}?", labels[i * i % 3]) for i in range(40))
    settings = config(evaluation={"labels": labels, "generations": 5, "maxNewTokens": 4})
    loop = a_loop(settings, root, world=world, model=tiny_model())
    task = LanguageTask(settings, Paths(root), Vault("ml/tiny", Purpose.DATA), root)
    task.tokenizer, task.prompts = a_tokenizer(), prompts
    return assessed(loop, task, EvalResult(1.0))


def weights_that_differ(world: World, root: Path) -> tuple[set[float], set[float]]:
    """Values of the frozen and the trained weights, once a loop has a model of which all are its rank's number."""
    model = an_adapted_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(world.rank)
    a_loop(config(), root, world=world, model=model)
    frozen, trained = (
        {float(parameter.mean()) for parameter in model.parameters() if parameter.requires_grad is is_trained}
        for is_trained in (False, True)
    )
    return frozen, trained


def a_read_error_on_rank_1(world: World, root: Path, act: str) -> None:
    """One of `ACTS` on a store of two checkpoints, while rank 1 cannot read its disk."""
    store = store_of(world, root)
    for step in (1, 2):
        store.save(step, a_state(step), {})
    if world.rank == 1:
        store.vault.open_reader = _disk_is_gone  # type: ignore[method-assign]
    ACTS[act](store)
    world.barrier()


def a_save_fails_on_rank_1(world: World, root: Path) -> tuple[str, int, bool]:
    """What a run raised of which the second save cannot be written; the newest step; whether both ranks were alike."""
    loop = a_loop(config(checkpoint={"interval": {"steps": 2}}), root, world=world)
    write = loop.savepoints.saver.store.vault.write

    def sometimes(path: Path, *arguments: Any) -> Any:
        if world.rank == 1 and "step-00000004" in str(path):
            raise StorageError(path, OSError(28, "No space left on device"))
        return write(path, *arguments)

    loop.savepoints.saver.store.vault.write = sometimes  # type: ignore[method-assign]
    try:
        loop.run()
    except JobError as error:
        raised = f"{type(error).__name__}: {error}"
    info = loop.savepoints.saver.store.latest()
    assert info is not None
    return raised, info.step, len(set(world.gather(loop.state.step))) == 1


def _disk_is_gone(*_: Any) -> Any:
    raise OSError(116, "Stale file handle")


ACTS: Final[dict[str, Callable[[CheckpointStore], Any]]] = {
    "save": lambda store: store.save(3, a_state(3), {}),
    "latest": lambda store: store.latest(),
    "at": lambda store: store.at(1),
}


def losses_of(world: World, root: Path, optimization: dict[str, Any], adapted: bool) -> tuple[list[float], float]:
    """Training losses of a run, and the last validation loss."""
    settings = config(**{"evaluation": {"intervalSteps": 2}, "microBatchSize": 1} | optimization)
    model = an_adapted_model() if adapted else a_model()
    loop = a_loop(settings, root, world=world, model=model)
    loop.run()
    return loop.reporter.losses, loop.reporter.evaluations[-1][1]


def resumed_under(world: World, root: Path, first: dict[str, Any], second: dict[str, Any]) -> tuple[list[float], float]:
    """As `losses_of`, of a run that stops after two steps under `first` and goes on under `second`."""
    loop = a_loop(config(**first), root, world=world, stop_after=2)
    run_until_stopped(loop)
    again = a_loop(config(**second), root, world=world)
    again.run()
    return loop.reporter.losses + again.reporter.losses, again.reporter.evaluations[-1][1]


def rows_and_losses(
    world: World, root: Path, optimization: dict[str, Any], stop_after: int | None
) -> tuple[list[list[int]], list[float]]:
    """Which rows each step took, over all ranks and in their order, and its loss; from where `root` has got to."""
    loop = a_loop(config(**optimization), root, world=world, stop_after=stop_after)
    taken: dict[int, list[int]] = {}  # by the rows before the step: the first may be read twice
    load = loop._load

    def watched(cursor: Cursor) -> list[TokenBatch]:
        parts = world.gather(cursor.rank_slice(world.rank, world.size).tolist())
        taken[cursor.consumed] = [row for part in parts for row in part]
        return load(cursor)

    loop._load = watched
    if stop_after is None:
        loop.run()
    else:
        run_until_stopped(loop)
    return [*taken.values()][:stop_after], loop.reporter.losses


def a_slow_rank(world: World, root: Path, strategy: str, **changes: Any) -> tuple[float | None, int | None, bool]:
    """Skew and slowest rank as the last step of a run reports them; rank 1's clock goes three times as fast."""
    loop = a_loop(config(strategy=strategy, maxSteps=3, **changes), root, world=world)
    loop._meter = Meter(world.device, count(0.0, 1.0 + 2.0 * world.rank).__next__)
    reported = []
    loop.reporter.step = lambda result, tokens, seconds: reported.append(result.ranks)  # type: ignore[method-assign]
    loop.run()
    return reported[-1].skew, reported[-1].slowest, min(reported[-1].memory) > 0


def under_offload(world: World, root: Path) -> dict[str, tuple[list[float], list[float]]]:
    """Losses and summed weights of runs with averages whose two halves are offloaded or not, by name."""
    halves = {"neither": (False, False), "both": (True, True), "first": (True, False), "second": (False, True)}
    settings = {"strategy": "FSDP", "emaDecay": 0.9, "microBatchSize": 1}
    found = {}
    for name, (first, second) in halves.items():
        begun = a_loop(config(**settings, offload=first), root / name, world=world, stop_after=3, model=a_model())
        run_until_stopped(begun)
        again = a_loop(config(**settings, offload=second), root / name, world=world, model=a_model())
        again.run()
        losses = begun.reporter.losses + again.reporter.losses
        found[name] = (losses, [float(weight.full_tensor().sum()) for weight in again.model.state_dict().values()])
    return found


def gradients_are_shards_after_each_micro_batch(world: World, root: Path) -> list[bool]:
    """Whether a rank has its part of the gradients, before the first and the second of two micro-batches."""
    learner = a_learner(scratch_model(TINY, LENGTH, seed=0), OptimizationSpec(strategy="FSDP"), world)
    found: list[bool] = []
    learner.loss.register_forward_pre_hook(lambda *_: found.append(float(learner.gradient_norm()) > 0))
    learner.accumulate([RandomRows(2).batch([i]) for i in (0, 1)], 1.0)
    return found


def whole_weights(world: World, root: Path, optimization: dict[str, Any]) -> list[float]:
    """The first weights that a rank alone would export, after a run whose averages it exports."""
    loop = a_loop(config(**optimization), root, world=world)
    loop.run()
    with loop.learner.finished() as model:
        exported = {name: tensor.clone() for name, tensor in model.named_parameters()}
        if world.is_lead:
            with answering(loop.model):
                loop.model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
    return [float(tensor.sum()) for _, tensor in sorted(exported.items())]


def train_after_one_rank_answered(world: World, root: Path) -> list[float]:
    """Gradient norms of steps of a sharded model of three layers, of which rank 0 alone made use in between."""
    model = scratch_model(TINY.model_copy(update={"num_layers": 3}), LENGTH, seed=0)
    learner = a_learner(model, OptimizationSpec(strategy="FSDP"), world)
    batch, norms = RandomRows(2).batch([0, 1]), []
    for step in (1, 2):
        learner.accumulate([batch], 1.0)
        norm = learner.gradient_norm()
        learner.update(0.01, norm, 1.0, step)
        norms.append(float(norm))
        with learner.finished(), torch.no_grad():
            for _ in range(3 if world.is_lead else 1):
                model(input_ids=batch.tokens_BT)
    return norms
