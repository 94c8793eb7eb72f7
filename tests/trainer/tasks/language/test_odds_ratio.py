"""Odds Ratio Preference Optimization: the paper's formulas again in numpy, and that a model learns to prefer."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model.precision import autocast
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.odds_ratio import OddsRatioLoss, log_odds
from support.builders.loop import (
    ALONE,
    BY_ODDS,
    a_loop,
    a_model,
    an_adapted_model,
    config,
    pair_rows,
    run_until_stopped,
    weights,
    without_dropout,
)

BATCH = pair_rows(6).batch(range(6))


@pytest.fixture(scope="module", autouse=True)
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def a_loss(model: nn.Module, weight: float = 0.25) -> OddsRatioLoss:
    optimization = OptimizationSpec()
    return OddsRatioLoss(model, autocast(optimization.precision, ALONE.device), optimization, weight)


def by_the_paper(model: nn.Module, batch: TokenBatch, weight: float) -> list[tuple[float, float]]:
    """Loss and log odds ratio of each pair, in float64: equations 3, 4, 6 and 7, an answer at a time."""
    exact = copy.deepcopy(model).double().eval()
    found = []
    for row in range(len(batch.tokens_BT)):
        likely = [mean_log_probability(exact, batch, row, side) for side in (0, 1)]
        odds = [np.exp(each) / (1 - np.exp(each)) for each in likely]
        ratio = float(np.log(odds[0] / odds[1]))
        found.append((float(-likely[0] - weight * np.log(1 / (1 + np.exp(-ratio)))), ratio))
    return found


def mean_log_probability(model: nn.Module, batch: TokenBatch, row: int, side: int) -> float:
    there = batch.document_ids_BT[row] == side
    tokens, targets = batch.tokens_BT[row, there], batch.targets_BT[row, there].numpy()
    with torch.no_grad():
        logits: npt.NDArray[np.float64] = model(input_ids=tokens[None]).logits[0].double().numpy()
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return float(np.mean([logs[i, target] for i, target in enumerate(targets) if target != -100]))


def test_loss_and_measures_are_what_the_paper_defines():
    model = without_dropout(a_model())
    expected = np.array(by_the_paper(model, BATCH, 0.25))
    loss = a_loss(model)
    assert loss(BATCH).item() == pytest.approx(expected[:, 0].sum(), rel=1e-5)
    loss.eval()
    found = loss(BATCH).tolist()
    assert found == pytest.approx([expected[:, 0].sum(), (expected[:, 1] > 0).sum(), expected[:, 1].sum()], rel=1e-4)


@given(st.floats(1e-6, 40))
def test_log_odds_are_those_of_the_probability(loss: float):
    p = np.exp(-np.longdouble(loss))
    assert float(log_odds(torch.tensor(loss).double())) == pytest.approx(float(np.log(p / (1 - p))), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("loss", [0.0, 1e-300, 800.0])
def test_odds_of_certain_and_of_hopeless_answers_stay_finite_with_their_gradient(loss: float):
    losses = torch.tensor(loss).double().requires_grad_()
    odds = log_odds(losses)
    odds.backward()
    assert odds.isfinite()
    assert losses.grad is not None
    assert losses.grad.isfinite()


def test_no_reference_is_kept():
    assert a_loss(a_model()).frozen == ()


@pytest.mark.parametrize("adapted", [False, True], ids=["all weights", "adapters"])
def test_a_model_learns_to_prefer_what_can_be_told_apart_and_says_it(tmp_path: Path, adapted: bool):
    settings = config(**BY_ODDS, maxSteps=60, learningRate=0.02, warmupSteps=0, evaluation={})
    loop = a_loop(settings, tmp_path, model=an_adapted_model() if adapted else a_model())
    loop.evaluate()
    loop.run()
    before, *_, after = loop.reporter.results
    assert after.figures["rewardAccuracy"] >= (before.figures["rewardAccuracy"] if adapted else 1.0)
    assert after.figures["rewardMargin"] > before.figures["rewardMargin"]
    assert after.loss < before.loss - 0.005
    assert after.figures.keys() == {"rewardAccuracy", "rewardMargin"}


def test_gradients_do_not_depend_on_how_pairs_are_dealt_into_micro_batches(tmp_path: Path):
    runs = [a_loop(config(**BY_ODDS, microBatchSize=size), tmp_path / str(size), model=a_model()) for size in (1, 4)]
    for loop in runs:
        loop.run()
    assert runs[0].reporter.losses == pytest.approx(runs[1].reporter.losses, rel=1e-6)


def test_an_interrupted_run_ends_with_the_very_losses_of_an_uninterrupted_one(tmp_path: Path):
    whole = a_loop(config(**BY_ODDS), tmp_path / "whole")
    whole.run()
    first = a_loop(config(**BY_ODDS), tmp_path / "parts", stop_after=3)
    run_until_stopped(first)
    second = a_loop(config(**BY_ODDS), tmp_path / "parts")
    second.run()
    assert first.reporter.losses + second.reporter.losses == whole.reporter.losses
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(second).items())
