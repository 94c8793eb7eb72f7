"""What holds between strategies that spread a model over ranks, on real ones: processes joined by gloo."""

from pathlib import Path
from typing import Any

import pytest

from support.builders.loop import BY_ODDS, PAIRS
from support.ranks.gloo import on_ranks
from support.ranks.torch_stories import (
    a_slow_rank,
    gradients_are_shards_after_each_micro_batch,
    losses_of,
    resumed_under,
    rows_and_losses,
    train_after_one_rank_answered,
    under_offload,
    whole_weights,
)

FSDP = {"strategy": "FSDP", "emaDecay": 0.9}
DDP = {"strategy": "DDP", "emaDecay": 0.9}


@pytest.mark.parametrize("data", [{}, PAIRS, BY_ODDS], ids=["tokens", "pairs", "pairs by odds"])
@pytest.mark.parametrize("adapted", [False, True], ids=["all weights", "adapters"])
def test_shards_train_as_whole_copies_do(tmp_path: Path, adapted: bool, data: dict[str, Any]):
    whole = on_ranks(2, losses_of, tmp_path / "ddp", DDP | data, adapted)
    sharded = on_ranks(2, losses_of, tmp_path / "fsdp", FSDP | data, adapted)
    for (losses, validation), (expected, expected_validation) in zip(sharded, whole, strict=True):
        assert losses == pytest.approx(expected, rel=1e-6)
        assert validation == pytest.approx(expected_validation, rel=1e-6)


@pytest.mark.parametrize("data", [PAIRS, BY_ODDS], ids=["DPO", "ORPO"])
@pytest.mark.parametrize("adapted", [False, True], ids=["all weights", "adapters"])
def test_pairs_train_on_two_ranks_as_on_one(tmp_path: Path, adapted: bool, data: dict[str, Any]):
    ((alone, validation),) = on_ranks(1, losses_of, tmp_path / "1", DDP | data, adapted)
    for losses, expected_validation in on_ranks(2, losses_of, tmp_path / "2", DDP | data, adapted):
        assert losses == pytest.approx(alone, rel=1e-6)
        assert validation == pytest.approx(expected_validation, rel=1e-6)


DROPOUT = {"dropout": 0.3}


@pytest.mark.parametrize(
    ("ranks", "how"),
    [(2, FSDP), (2, FSDP | DROPOUT), (1, DDP | DROPOUT | {"compile": True})],
    ids=["sharded", "sharded, with dropout", "compiled, with dropout"],
)
def test_a_run_goes_on_to_the_last_bit(tmp_path: Path, ranks: int, how: dict[str, Any]):
    expected = on_ranks(
        ranks, losses_of, tmp_path / "whole", how | {"evaluation": {"intervalSteps": 100}, "microBatchSize": 8}, False
    )
    assert on_ranks(ranks, resumed_under, tmp_path / "parts", how, how) == expected


@pytest.mark.parametrize(("first", "second"), [(DDP, FSDP), (FSDP, DDP)], ids=["to shards", "from shards"])
def test_a_checkpoint_serves_another_strategy(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]):
    losses, validation = on_ranks(2, resumed_under, tmp_path / "parts", first, second)[0]
    expected, expected_validation = on_ranks(2, resumed_under, tmp_path / "whole", DDP, DDP)[0]
    assert losses == pytest.approx(expected, rel=1e-6)
    assert validation == pytest.approx(expected_validation, rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 3], ids=["2 to 1", "2 to 3"])
@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
def test_another_number_of_ranks_goes_on_with_the_same_rows_and_losses(tmp_path: Path, strategy: str, ranks: int):
    how = {"strategy": strategy, "emaDecay": 0.9, "globalBatchSize": 6}
    rows, losses = on_ranks(2, rows_and_losses, tmp_path / "whole", how, None)[0]
    first, *_ = on_ranks(2, rows_and_losses, tmp_path / "parts", how, 2)
    for again in on_ranks(ranks, rows_and_losses, tmp_path / "parts", how, None):
        assert first[0] + again[0] == rows
        assert first[1] + again[1] == pytest.approx(losses, rel=1e-6)


@pytest.mark.timeout(300)  # eight runs
def test_offload_changes_no_bit_of_losses_and_weights_and_a_checkpoint_serves_with_and_without(tmp_path: Path):
    for found in on_ranks(2, under_offload, tmp_path):
        assert found["both"] == found["first"] == found["second"] == found["neither"]
        assert len(found["neither"][0]) == 6


def test_shards_of_gradients_are_all_that_a_rank_keeps_between_micro_batches(tmp_path: Path):
    assert on_ranks(2, gradients_are_shards_after_each_micro_batch, tmp_path) == [[False, True]] * 2


def test_a_rank_alone_can_use_and_export_what_is_sharded(tmp_path: Path):
    whole = on_ranks(2, whole_weights, tmp_path / "ddp", DDP)
    sharded = on_ranks(2, whole_weights, tmp_path / "fsdp", FSDP)
    assert sharded[0] == sharded[1] == pytest.approx(whole[0], rel=1e-5)


def test_a_compiled_decoder_trains_as_the_plain_one(tmp_path: Path):
    plain = on_ranks(1, losses_of, tmp_path / "plain", DDP, False)
    compiled = on_ranks(1, losses_of, tmp_path / "compiled", DDP | {"compile": True}, False)
    assert compiled[0][0] == pytest.approx(plain[0][0], rel=1e-5)


def test_a_rank_that_answers_more_than_its_peer_does_not_part_their_next_steps(tmp_path: Path):
    first, second = on_ranks(2, train_after_one_rank_answered, tmp_path)
    assert first == second
    assert len(first) == 2


def test_every_rank_learns_which_one_is_slow(tmp_path: Path):
    assert on_ranks(2, a_slow_rank, tmp_path, "DDP") == [(3.0, 1, True)] * 2


def test_ranks_that_wait_for_each_other_in_every_layer_know_no_slow_one(tmp_path: Path):
    assert on_ranks(2, a_slow_rank, tmp_path, "FSDP") == [(None, None, True)] * 2
