"""Direct Preference Optimization: the loss by hand, the reference, and that a model learns to prefer."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from deepseek_trainer.contract.method import LoraSpec, MethodSpec, MethodType
from deepseek_trainer.contract.optimization import OptimizationSpec, Precision
from deepseek_trainer.model.method import trainable
from deepseek_trainer.model.precision import autocast
from deepseek_trainer.tasks.language.batch import TokenBatch, collate
from deepseek_trainer.tasks.language.loss import CausalLoss, row_losses
from deepseek_trainer.tasks.language.packing import Document, packed_row, row_dtype
from deepseek_trainer.tasks.language.preference import PairLoss, log_odds, pair_losses, without_adapters
from support.builders.loop import (
    ALONE,
    LENGTH,
    PAIRS,
    a_loop,
    a_model,
    a_partly_frozen_model,
    a_quantised_model,
    an_adapted_model,
    config,
    pair_rows,
    run_until_stopped,
    weights,
    without_dropout,
)
from support.builders.model import tiny_model


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


BATCH = pair_rows(6).batch(range(6))
METHODS: list[Callable[[], nn.Module]] = [a_model, a_partly_frozen_model, an_adapted_model, a_quantised_model]


def a_loss(model: nn.Module, beta: float = 0.5, smoothing: float = 0.0) -> PairLoss:
    optimization = OptimizationSpec(label_smoothing=smoothing)
    return PairLoss(model, autocast(optimization.precision, ALONE.device), optimization, beta)


def moved(model: nn.Module) -> nn.Module:
    """`model` some way from where it was."""
    with torch.no_grad():
        for i, parameter in enumerate(p for p in model.parameters() if p.requires_grad):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i))
            parameter.add_(noise, alpha=0.3)
    return model


def one_side(batch: TokenBatch, side: int) -> list[TokenBatch]:
    """The chosen (0) or rejected (1) document of each pair, each a row of its own without padding."""
    found = []
    for row in range(len(batch.tokens_BT)):
        places = batch.document_ids_BT[row] == side
        parts = (batch.tokens_BT, batch.targets_BT, batch.position_ids_BT)
        tokens, targets, positions = (part[row, places][None] for part in parts)
        found.append(TokenBatch(tokens, targets, positions, torch.zeros_like(tokens)))
    return found


def alone(model: nn.Module, batch: TokenBatch) -> Tensor:
    """`log_odds` from forward passes over single answers."""
    chosen, rejected = (torch.cat([row_losses(model, each) for each in one_side(batch, side)]) for side in (0, 1))
    return rejected - chosen


@pytest.mark.parametrize(
    ("margin", "smoothing", "loss"),
    [
        (0.0, 0.0, 0.6931472),
        (1.0, 0.0, 0.3132617),
        (-1.0, 0.0, 1.3132617),
        (1.0, 0.1, 0.4132617),
        (0.0, 0.3, 0.6931472),
        (-50.0, 0.0, 50.0),
    ],
)
def test_loss_is_what_one_computes_by_hand(margin: float, smoothing: float, loss: float):
    assert float(pair_losses(torch.tensor(margin).double(), smoothing)) == pytest.approx(loss, abs=1e-7)


@given(st.floats(-30, 30), st.floats(0, 0.49))
def test_loss_is_the_cross_entropy_of_an_order_that_is_wrong_so_often(margin: float, smoothing: float):
    right = 1 / (1 + math.exp(-margin))
    expected = -(1 - smoothing) * math.log(right) - smoothing * math.log(1 - right if right < 1 else math.exp(-margin))
    assert float(pair_losses(torch.tensor(margin).double(), smoothing)) == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_a_pair_in_one_row_is_as_likely_as_its_answers_alone():
    model = a_model()
    torch.testing.assert_close(log_odds(model, BATCH), alone(model, BATCH), rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", METHODS)
def test_before_training_nothing_is_preferred_and_the_loss_is_log_2(model: Callable[[], nn.Module]):
    loss = a_loss(without_dropout(model()))
    assert loss(BATCH).item() == pytest.approx(6 * math.log(2), rel=1e-12)
    loss.eval()
    assert loss(BATCH).tolist() == pytest.approx([6 * math.log(2), 3.0, 0.0], abs=1e-12), "ties count as half"


@pytest.mark.parametrize("model", METHODS)
def test_margin_is_beta_times_what_the_policy_gained_over_the_model_before_training(model: Callable[[], nn.Module]):
    policy = without_dropout(model())
    before = alone(policy, BATCH)
    loss = a_loss(policy, beta=0.25)
    gained = (alone(moved(policy), BATCH) - before).detach()
    loss.eval()
    found = loss(BATCH).detach()
    expected = [pair_losses(0.25 * gained).sum(), (gained > 0).sum(), 0.25 * gained.sum()]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-4)


@pytest.mark.parametrize("model", [an_adapted_model, a_quantised_model])
def test_without_its_adapters_a_model_answers_as_its_base_and_is_left_as_it_was(model: Callable[[], nn.Module]):
    """Also in training mode: the reference has no dropout."""
    policy = model().train()
    trained = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
    expected = without_adapters(policy, BATCH)
    moved(policy)
    assert torch.equal(without_adapters(policy, BATCH), expected)
    assert not expected.requires_grad
    assert not torch.equal(log_odds(policy.eval(), BATCH), expected)
    assert [name for name, parameter in policy.named_parameters() if parameter.requires_grad] == trained


def test_a_lora_reference_is_the_base_model_itself():
    base = tiny_model()
    expected = log_odds(base, BATCH)
    method = MethodSpec(type=MethodType.LORA, lora=LoraSpec(dropout=0))
    policy = moved(trainable(base, method, 0, ALONE.device, torch.float32))
    torch.testing.assert_close(without_adapters(policy, BATCH), expected)


@pytest.mark.parametrize("model", [a_model, an_adapted_model])
def test_a_gradient_step_makes_the_chosen_answer_likelier_and_the_rejected_one_less(model: Callable[[], nn.Module]):
    policy = without_dropout(model())
    loss = a_loss(policy)
    loss(BATCH).backward()
    before = [torch.cat([row_losses(policy, each) for each in one_side(BATCH, side)]).sum() for side in (0, 1)]
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-3)
    after = [torch.cat([row_losses(policy, each) for each in one_side(BATCH, side)]).sum() for side in (0, 1)]
    assert after[0] < before[0]
    assert after[1] > before[1]


def test_only_the_policy_is_trained_and_the_copy_is_nobodys_part():
    policy = a_model()
    loss = a_loss(policy)
    plain = CausalLoss(policy, autocast(Precision.FP32, ALONE.device), OptimizationSpec())
    assert [name for name, _ in loss.named_parameters()] == [name for name, _ in plain.named_parameters()]
    loss(BATCH).backward()
    (frozen,) = loss.frozen
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.model.training
    assert a_loss(an_adapted_model()).frozen == ()


@pytest.mark.parametrize(
    ("model", "optimization"),
    [*((model, {}) for model in METHODS), (a_model, {"labelSmoothing": 0.1})],
)
def test_a_model_learns_to_prefer_what_can_be_told_apart(
    tmp_path: Path, model: Callable[[], nn.Module], optimization: dict[str, Any]
):
    settings = config(**PAIRS, **optimization, maxSteps=60, learningRate=0.02, warmupSteps=0, evaluation={})
    loop = a_loop(settings, tmp_path, model=model())
    loop.run()
    (result,) = loop.reporter.results
    assert result.figures["rewardAccuracy"] == 1.0
    assert result.figures["rewardMargin"] > 0.01, "of adapters of rank 2; of all weights it is above 1"
    assert result.loss < math.log(2) - 0.005
    assert result.figures.keys() == {"rewardAccuracy", "rewardMargin"}, "no perplexity: the loss is not one of tokens"


@pytest.mark.parametrize(
    ("model", "optimization"),
    [
        (a_model, {}),
        (a_model, {"emaDecay": 0.9, "precision": "FP16"}),
        (a_partly_frozen_model, {"recompute": "Full", "microBatchSize": 3}),
        (an_adapted_model, {"recompute": "Selective"}),
        (a_quantised_model, {}),
    ],
    ids=["all weights", "average and FP16", "some, in parts", "adapters", "NF4"],
)
def test_an_interrupted_run_keeps_its_first_reference_and_ends_with_the_very_losses_of_an_uninterrupted_one(
    tmp_path: Path, model: Callable[[], nn.Module], optimization: dict[str, Any]
):
    settings = config(**PAIRS, **optimization, evaluation={"intervalSteps": 2})
    whole = a_loop(settings, tmp_path / "whole", model=model())
    whole.run()
    first = a_loop(settings, tmp_path / "parts", stop_after=3, model=model())
    run_until_stopped(first)
    second = a_loop(settings, tmp_path / "parts", model=model())
    second.run()
    assert first.reporter.losses + second.reporter.losses == whole.reporter.losses
    assert first.reporter.results + second.reporter.results == whole.reporter.results
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())


def test_gradients_do_not_depend_on_how_pairs_are_dealt_into_micro_batches(tmp_path: Path):
    runs = [a_loop(config(**PAIRS, microBatchSize=size), tmp_path / str(size), model=a_model()) for size in (1, 4)]
    for loop in runs:
        loop.run()
    assert runs[0].reporter.losses == pytest.approx(runs[1].reporter.losses, rel=1e-6)


def test_logits_of_many_positions_made_in_parts_change_nothing(monkeypatch: pytest.MonkeyPatch):
    def loss_and_gradients() -> tuple[Tensor, list[Tensor]]:
        model = a_model()
        loss = a_loss(model)
        moved(model)
        total = loss(BATCH)
        return total, list(torch.autograd.grad(total, list(model.parameters())))

    expected = loss_and_gradients()
    monkeypatch.setattr(OptimizationSpec, "logits_bytes", 4 * 260 * 5)  # five positions
    torch.testing.assert_close(loss_and_gradients(), expected)


def test_padding_says_nothing_about_a_pair():
    sides = [Document(np.array([9, 8, token], np.uint32), np.array([False, False, True])) for token in (5, 6)]
    (short,), (long,) = ([packed_row(sides, row_dtype(length, 260), pad=0)] for length in (6, LENGTH))
    found = [log_odds(a_model(), collate(row)) for row in (short, long)]
    torch.testing.assert_close(found[0], found[1])
