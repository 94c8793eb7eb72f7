"""Jobs under ZeRO on real ranks: what they compute is what DDP computes, and their checkpoints are anyone's.

DeepSpeed's optimizers are used through attributes that it does not document: where a release changes them, these fail.
"""

import math
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.base_model.families import scratch_dimensions
from deepseek_trainer.budget.estimate import Setup, memory
from deepseek_trainer.contract.optimization import OptimizationSpec
from support.ranks.gloo import on_ranks
from support.ranks.zero_learner_stories import (
    LAYERS,
    LENGTH,
    TINY,
    a_slow_rank_under,
    bad_steps,
    begun_in,
    bytes_kept,
    from_8_bits,
    from_muon,
    gone_on,
    norms_with_answers,
    on_from,
    resumed,
    skips,
    under_each,
)

pytestmark = pytest.mark.timeout(600)  # each starts two processes that import DeepSpeed
ZERO = ["ZeRO1", "ZeRO2", "ZeRO3"]
CASES: dict[str, dict[str, Any]] = {
    "clipped": {"maxGradNorm": 0.05},
    "adapters": {"adapted": True},
    "BF16": {"precision": "BF16"},
    "FP16": {"precision": "FP16"},
    "tied, recomputed": {"tied": True, "recompute": "Full"},
    "recomputed in part": {"recompute": "Selective"},
    # Ranks make logits of their learned positions, of which there are more on one than on the other.
    "logits in parts": {"parts": 3},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Of each rank: what it saw in each case under each strategy."""
    return on_ranks(2, under_each, tmp_path_factory.mktemp("zero"), ["DDP", *ZERO], CASES)


@pytest.mark.parametrize("strategy", ZERO)
@pytest.mark.parametrize("case", CASES)
def test_every_stage_trains_as_whole_copies_do(runs: list[Any], case: str, strategy: str) -> None:
    # In 16 bits other sums round otherwise, and where a gradient is almost zero AdamW's step is as long as anywhere.
    close = 1e-4 if case in {"FP16", "BF16"} else 1e-6
    for rank in runs:
        found, expected = rank[case][strategy], rank[case]["DDP"]
        assert found["losses"] == pytest.approx(expected["losses"], rel=close)
        assert found["validation"] == pytest.approx(expected["validation"], rel=close)
        for name, weight in expected["weights"].items():
            assert found["weights"][name] == pytest.approx(weight, abs=close), name
    assert runs[0][case][strategy]["weights"] == runs[1][case][strategy]["weights"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_run_goes_on_to_the_last_bit(tmp_path: Path, ranks: int) -> None:
    """Of three numbers, other than of two, the sum depends on the order."""
    assert on_ranks(ranks, gone_on, tmp_path, ZERO) == [dict.fromkeys(ZERO, (True, True))] * ranks


def test_a_checkpoint_serves_any_strategy_and_number_of_ranks(tmp_path: Path) -> None:
    pairs = [("DDP", "DDP"), ("ZeRO3", "DDP"), ("DDP", "ZeRO2"), ("ZeRO1", "FSDP"), ("FSDP", "ZeRO3"), ("DDP", "ZeRO1")]
    expected, *others = on_ranks(2, resumed, tmp_path, pairs)[0]
    for losses in others:
        assert losses == pytest.approx(expected, rel=1e-6)
    on_ranks(2, begun_in, tmp_path / "fewer", "ZeRO2")
    assert on_ranks(1, on_from, tmp_path / "fewer", "ZeRO3")[0] == pytest.approx(expected[2:], rel=1e-6)


def test_moments_of_8_bits_serve_every_strategy(tmp_path: Path) -> None:
    expected, *others = on_ranks(2, from_8_bits, tmp_path, ["DDP", "FSDP", "ZeRO1", "ZeRO3"])[0]
    for losses in others:
        assert losses == pytest.approx(expected, rel=1e-6)


def test_moments_that_adamw_can_make_nothing_of_are_refused_on_all_ranks(tmp_path: Path) -> None:
    for told in on_ranks(2, from_muon, tmp_path):
        assert "optimization.optimizer=AdamW: the checkpoint has the moments of Muon" in told


def test_a_gradient_that_is_not_finite_on_one_rank_skips_the_step_on_both_or_takes_both_back(tmp_path: Path) -> None:
    first, second = on_ranks(2, bad_steps, tmp_path, ["DDP", *ZERO])
    for name in ZERO:
        for rank in (first, second):
            skipped, back = rank[name]
            _, expected = rank["DDP"]
            assert skipped == {"skipped": [3], "changed": [1, 2, 4, 5, 6]}
            assert back.pop("losses") == pytest.approx(expected["losses"], rel=1e-6, nan_ok=True)
            assert back.items() <= expected.items()


def test_a_step_that_is_skipped_changes_nothing() -> None:
    for rank in on_ranks(2, skips, ZERO):
        for norm, is_as_before, is_as_if_never_tried in (rank[name] for name in ZERO):
            assert math.isnan(norm)
            assert is_as_before
            assert is_as_if_never_tried


def test_a_rank_that_answers_more_than_its_peer_does_not_part_their_next_steps() -> None:
    first, second = on_ranks(2, norms_with_answers, "ZeRO3", True)
    assert first == second == on_ranks(2, norms_with_answers, "ZeRO3", False)[0]


@pytest.mark.parametrize(
    ("strategy", "told"), [("ZeRO1", (3.0, 1, True)), ("ZeRO2", (3.0, 1, True)), ("ZeRO3", (None, None, True))]
)
def test_every_rank_learns_which_one_is_slow_where_none_waits_in_every_layer(
    tmp_path: Path, strategy: str, told: tuple[float | None, int | None, bool]
) -> None:
    assert on_ranks(2, a_slow_rank_under, tmp_path, strategy) == [told] * 2


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_rank_keeps_what_the_estimate_says(stage: int) -> None:
    spec = OptimizationSpec(strategy=f"ZeRO{stage}")
    setup = Setup(1, LENGTH, None, is_bf16=False, is_cuda=False, ranks=2, is_asynchronous=False, optimization=spec)
    shape = scratch_dimensions(TINY.model_copy(update={"num_layers": LAYERS, "tie_embeddings": False}))
    found = memory(shape, setup)
    for rank in on_ranks(2, bytes_kept, stage):
        assert rank == pytest.approx((found.weights, found.gradients, found.moments), rel=0.1)
