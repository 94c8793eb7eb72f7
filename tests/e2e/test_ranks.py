"""What holds between ranks, on real ones: processes joined by gloo."""

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from deepseek_trainer.contract.errors import TryAgainError
from gloo_ranks import on_ranks
from loop_builders import a_model, a_quantised_model
from rank_stories import (
    ACTS,
    a_read_error_on_rank_1,
    a_save_fails_on_rank_1,
    interrupted_run,
    stop_during_an_evaluation,
    weights_that_differ,
)
from vault_builders import a_store


@pytest.mark.parametrize(("ranks", "model"), [(2, a_model), (3, a_model), (2, a_quantised_model)])
def test_an_interrupted_run_ends_as_an_uninterrupted_one_on_any_number_of_ranks(
    tmp_path: Path, ranks: int, model: Callable[[], nn.Module]
):
    """Of three numbers, other than of two, the sum depends on the order; each rank quantises its base itself."""
    assert on_ranks(ranks, interrupted_run, tmp_path, model) == [(True, True, True)] * ranks


def test_a_stop_that_one_rank_hears_during_an_evaluation_ends_it_on_all(tmp_path: Path):
    assert on_ranks(2, stop_during_an_evaluation, tmp_path) == [(2, 1), (2, 1)]


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
