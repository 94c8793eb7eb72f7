"""What holds between ranks, on real ones: processes joined by gloo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepseek_trainer.contract.errors import TryAgainError
from support.builders.loop import PAIRS, a_model, a_quantised_model, an_adapted_model
from support.builders.vault import a_store
from support.ranks.gloo import on_ranks
from support.ranks.torch_stories import (
    ACTS,
    a_read_error_on_rank_1,
    a_save_fails_on_rank_1,
    interrupted_run,
    not_finite_on_rank_1,
    rolled_back,
    stop_during_an_evaluation,
    weights_of_32_rows,
    weights_that_differ,
    what_it_can_do,
)


@pytest.mark.parametrize(
    ("ranks", "model", "changes"),
    [
        (2, a_model, {}),
        (3, a_model, {"emaDecay": 0.9}),
        (2, a_quantised_model, {}),
        (2, a_model, PAIRS),
        (3, an_adapted_model, PAIRS),
    ],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one_on_any_number_of_ranks(
    tmp_path: Path, ranks: int, model: Callable[[], nn.Module], changes: dict[str, Any]
):
    """Of three numbers, other than of two, the sum depends on the order; each rank quantises its base itself."""
    assert on_ranks(ranks, interrupted_run, tmp_path, model, changes) == [(True,) * 4] * ranks


def test_32_rows_give_the_same_weights_at_once_in_four_parts_and_on_two_ranks(tmp_path: Path):
    (whole,) = on_ranks(1, weights_of_32_rows, tmp_path / "whole", 32)
    cut = on_ranks(1, weights_of_32_rows, tmp_path / "cut", 8)
    shared = on_ranks(2, weights_of_32_rows, tmp_path / "shared", 16)
    for found in cut + shared:
        assert found.keys() == whole.keys()
        assert all(torch.allclose(found[name], whole[name], rtol=0, atol=1e-6) for name in whole)


@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_both(tmp_path: Path, strategy: str):
    outcome = {"skipped": [3], "changed": [1, 2, 4, 5, 6]}
    assert on_ranks(2, not_finite_on_rank_1, tmp_path, strategy) == [outcome] * 2


@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
def test_two_ranks_go_back_to_a_checkpoint_together_and_on_as_one_does(tmp_path: Path, strategy: str):
    (alone,) = on_ranks(1, rolled_back, tmp_path / "alone", "DDP")
    assert alone["events"] == [("skipped", None), ("rolled_back", 2)]
    assert alone["weights of steps"] == [1, 2, 3, 2, 5, 6, 7, 8]
    assert alone["consumed"] == 8 * 4
    for found in on_ranks(2, rolled_back, tmp_path / "two", strategy):
        assert without_nan(found) == without_nan(alone)
        assert found["losses"] == pytest.approx(alone["losses"], rel=1e-6, nan_ok=True)


def without_nan(told: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key != "losses"}


def test_a_stop_that_one_rank_hears_during_an_evaluation_ends_it_on_all(tmp_path: Path):
    assert on_ranks(2, stop_during_an_evaluation, tmp_path) == [(2, 1), (2, 1)]


@pytest.mark.timeout(300)  # three processes import what scores need
def test_answers_and_labels_are_the_same_on_any_number_of_ranks(tmp_path: Path):
    (alone,) = on_ranks(1, what_it_can_do, tmp_path / "1")
    assert alone["scores"]["classification"]["total"] == 40
    assert len(set(alone["answers"])) > 1
    assert on_ranks(2, what_it_can_do, tmp_path / "2") == [alone] * 2


def test_trained_weights_start_as_those_of_rank_0_and_frozen_ones_are_not_sent(tmp_path: Path):
    assert on_ranks(2, weights_that_differ, tmp_path) == [({0.0}, {0.0}), ({1.0}, {0.0})]


@pytest.mark.parametrize("act", ACTS)
def test_a_read_error_on_one_rank_is_an_error_of_all(tmp_path: Path, act: str):
    outcomes = on_ranks(2, a_read_error_on_rank_1, tmp_path, act)
    assert [type(outcome) for outcome in outcomes] == [TryAgainError, OSError], "rank 1 keeps what its disk said"
    assert "rank 1: the storage failed" in str(outcomes[0])
    newest = a_store(tmp_path).latest()
    assert newest is not None
    assert newest.step == (3 if act == "save" else 2)


def test_when_the_disk_of_one_rank_fails_all_ranks_stop_at_the_same_step(tmp_path: Path) -> None:
    first, second = on_ranks(2, a_save_fails_on_rank_1, tmp_path)
    assert first[0].startswith("TryAgainError: rank 1: cannot write")
    assert second[0].startswith("StorageError: cannot write")
    assert first[1:] == second[1:] == (2, True)
