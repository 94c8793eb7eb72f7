"""What each of several ranks does in test_zero_learner.py; here, because its processes must be able to import it."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_trainer.checkpoints.statefile import split
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model.loading import scratch_model
from deepseek_trainer.model.precision import autocast
from deepseek_trainer.tasks.language.loss import CausalLoss
from deepseek_trainer.training.learner import Learner
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.optimizer import optimizers
from deepseek_trainer.worker.distributed import World
from support.builders.loop import (
    LENGTH,
    TINY,
    RandomRows,
    a_learner,
    a_loop,
    an_adapted_model,
    config,
    run_until_stopped,
)
from support.ranks.torch_stories import a_slow_rank, not_finite_on_rank_1, rolled_back

Settings = dict[str, Any]
LAYERS = 3


def join(world: World) -> None:
    os.environ["LOCAL_RANK"] = str(world.rank)  # as torchrun does


def a_deep_model(*, tied: bool = False) -> nn.Module:
    return scratch_model(TINY.model_copy(update={"num_layers": LAYERS, "tie_embeddings": tied}), LENGTH, seed=0)


def under_each(world: World, root: Path, strategies: Sequence[str], cases: Mapping[str, Settings]) -> Any:
    """{case: {strategy: what `trained` gives}}."""
    join(world)
    return {
        case: {name: trained(world, root / case / name, settings | {"strategy": name}) for name in strategies}
        for case, settings in cases.items()
    }


def trained(world: World, root: Path, settings: Settings) -> dict[str, Any]:
    """The losses and the weights of a run, and its last validation loss.

    Of `settings`, `adapted` and `tied` are for the model; `parts`: logits are made of so many positions at once.
    """
    settings = dict(settings)
    OptimizationSpec.logits_bytes = 4 * TINY.vocab_size * settings.pop("parts", LENGTH * 4)
    model = a_deep_model(tied=settings.pop("tied", False)) if not settings.pop("adapted", False) else an_adapted_model()
    settings = config(**{"evaluation": {"intervalSteps": 2}, "microBatchSize": 1} | settings)
    loop = a_loop(settings, root, world=world, model=model)
    loop.run()
    weights = {name: weight.tolist() for name, weight in flat(loop).items()}
    return {"losses": loop.reporter.losses, "validation": loop.reporter.evaluations[-1][1], "weights": weights}


def flat(loop: Loop) -> dict[str, Tensor]:
    """The weights that a rank alone would export."""
    with loop.learner.finished() as model:
        return {name: weight.detach().flatten().clone() for name, weight in model.named_parameters()}


def gone_on(world: World, root: Path, strategies: Sequence[str]) -> dict[str, tuple[bool, bool]]:
    """Whether a run with dropout that was stopped has the losses, and the weights, of one that was not."""
    join(world)
    found = {}
    for name in strategies:
        settings = config(strategy=name, globalBatchSize=2 * world.size)
        whole = a_loop(settings, root / name / "whole", world=world)
        whole.run()
        run_until_stopped(a_loop(settings, root / name / "parts", world=world, stop_after=2))
        again = a_loop(settings, root / name / "parts", world=world)
        again.run()
        expected = flat(whole)
        same = all(torch.equal(weight, expected[key]) for key, weight in flat(again).items())
        found[name] = (again.reporter.losses == whole.reporter.losses[2:], same)
    return found


def resumed(world: World, root: Path, pairs: Sequence[tuple[str, str]]) -> list[list[float]]:
    """Losses of runs that stop after two steps under one strategy and go on under another."""
    join(world)
    losses = []
    for first, second in pairs:
        place = root / f"{first}-{second}"
        losses.append(begun_in(world, place, first) + on_from(world, place, second))
    return losses


def begun_in(world: World, root: Path, strategy: str) -> list[float]:
    """Losses of the two steps of a run until its first checkpoint."""
    join(world)
    loop = a_loop(config(strategy=strategy), root, world=world, stop_after=2)
    run_until_stopped(loop)
    return loop.reporter.losses


def on_from(world: World, root: Path, strategy: str) -> list[float]:
    """Losses of a run from the newest checkpoint on."""
    join(world)
    again = a_loop(config(strategy=strategy), root, world=world)
    again.run()
    return again.reporter.losses


def from_8_bits(world: World, root: Path, strategies: Sequence[str]) -> list[list[float]]:
    """Losses of runs that go on from moments in 8 bits under AdamW and each of the strategies."""
    join(world)
    losses = []
    for name in strategies:
        run_until_stopped(a_loop(config(optimizer="AdamW8bit"), root / name, world=world, stop_after=2, model=a_wide()))
        again = a_loop(config(strategy=name), root / name, world=world, model=a_wide())
        again.run()
        losses.append(again.reporter.losses)
    return losses


def a_wide() -> nn.Module:
    """With an embedding that is large enough for moments in 8 bits."""
    return scratch_model(TINY.model_copy(update={"hidden_size": 16}), LENGTH, seed=0)


def from_muon(world: World, root: Path) -> str:
    """What a rank says that is to go on under ZeRO from Muon's moments."""
    join(world)
    run_until_stopped(a_loop(config(optimizer="Muon"), root, world=world, stop_after=2))
    try:
        a_loop(config(strategy="ZeRO2"), root, world=world)
    except ConfigError as error:
        return str(error)
    return ""


def bad_steps(world: World, root: Path, strategies: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """What `not_finite_on_rank_1` and `rolled_back` report."""
    join(world)
    return {
        name: (not_finite_on_rank_1(world, root / name / "nan", name), rolled_back(world, root / name / "back", name))
        for name in strategies
    }


def skips(world: World, strategies: Sequence[str]) -> dict[str, tuple[float, bool, bool]]:
    """Of a first and a later step that are skipped: the norm, whether the state is as before, and as if never tried."""
    join(world)
    found = {}
    for name in strategies:
        tried, untried = (a_learner(a_deep_model(), OptimizationSpec(strategy=name), world) for _ in range(2))
        kept = []
        for step in (1, 2):
            before = tensors(tried)
            tried.accumulate(batches(world, 0), float("nan"))
            norm = float(tried.gradient_norm())
            tried.discard()
            tried.accumulate(batches(world, 0), 5.0)  # a spike
            tried.discard()
            kept.append(same(before, tensors(tried)))
            for learner in (tried, untried):
                learner.accumulate(batches(world, step), 5.0)
                learner.update(0.01, learner.gradient_norm(), 1.0, step)
        found[name] = (norm, all(kept), same(tensors(tried), tensors(untried)))
    return found


def batches(world: World, step: int) -> list[Any]:
    """Two of one row."""
    return [RandomRows(12).batch([4 * step + 2 * world.rank + i]) for i in range(2)]


def tensors(learner: Learner) -> dict[str, Tensor]:
    return {path: tensor.clone() for path, tensor in split(learner.state())[0].items()}


def same(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(tensor, right[path]) for path, tensor in left.items())


def norms_with_answers(world: World, strategy: str, asks: bool) -> list[float]:
    """Gradient norms of three steps, between which, if it `asks`, rank 0 makes more use of the model than rank 1."""
    join(world)
    learner, norms = a_learner(a_deep_model(), OptimizationSpec(strategy=strategy), world), []
    for step in (1, 2, 3):
        learner.accumulate(batches(world, step - 1), 5.0)
        norms.append(float(norm := learner.gradient_norm()))
        learner.update(0.01, norm, 1.0, step)
        with learner.finished() as model, torch.no_grad():
            for _ in range((3 if world.is_lead else 1) if asks else 0):
                model(input_ids=torch.zeros(1, 4, dtype=torch.int64))
    return norms


def a_slow_rank_under(world: World, root: Path, strategy: str) -> tuple[float | None, int | None, bool]:
    """Of steps of two micro-batches."""
    join(world)
    return a_slow_rank(world, root, strategy, microBatchSize=1)


def bytes_kept(world: World, stage: int) -> tuple[int, int, int]:
    """Weights, gradients and moments of a rank, before and after the last micro-batch of a step."""
    from deepseek_trainer.training.zero_engine import ZeroEngine

    join(world)
    model, spec = a_deep_model(), OptimizationSpec()
    (adamw,) = optimizers(model, spec)
    engine = ZeroEngine(CausalLoss(model, autocast(spec.precision, world.device), spec), adamw, stage, world)
    first, last = batches(world, 0)
    engine.backward(engine.loss(first, is_last=False))
    whole = size_of([weight.grad for weight in model.parameters() if weight.grad is not None])
    engine.backward(engine.loss(last, is_last=True))
    held = [weight.ds_tensor if stage == 3 else weight for weight in model.parameters()]
    moments = [value for state in adamw.state.values() for key, value in state.items() if key != "step"]
    return size_of([*held, *adamw.state]), whole or size_of(engine.gradients()), size_of(moments)


def size_of(kept: Sequence[Tensor]) -> int:
    """[bytes], of what shares memory once."""
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in kept}.values())
