"""Mixtures of experts, and layers that share weights, on two real ranks under every strategy."""

from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.training.balance import SPEED
from support.builders.loop import PAIRS
from support.ranks.expert_stories import STEPS, story
from support.ranks.gloo import on_ranks

DDP: dict[str, Any] = {"strategy": "DDP"}
FSDP: dict[str, Any] = {"strategy": "FSDP"}
ZERO = [pytest.param({"strategy": name}, marks=pytest.mark.timeout(300), id=name) for name in ("ZeRO1", "ZeRO3")]
BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"
NAMES = ["experts", "adapters", "shared layers"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [pytest.param(DDP, id="DDP"), pytest.param(FSDP | {"emaDecay": 0.9}, id="FSDP")])
def test_a_run_goes_on_to_the_last_bit(tmp_path: Path, name: str, how: dict[str, Any]):
    whole = on_ranks(2, story, tmp_path / "whole", name, how, None)
    assert on_ranks(2, story, tmp_path / "parts", name, how, how) == whole
    assert whole[0]["weights"] == whole[1]["weights"]


@pytest.mark.parametrize("name", ["experts", "adapters"])
def test_pairs_of_answers_are_learned_with_experts_to_the_last_bit_after_a_stop(tmp_path: Path, name: str):
    how = FSDP | PAIRS
    assert on_ranks(2, story, tmp_path / "parts", name, how, how) == on_ranks(2, story, tmp_path, name, how, None)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", [pytest.param(FSDP, id="FSDP"), *ZERO])
def test_every_strategy_trains_as_whole_copies_do_and_goes_on_from_their_checkpoints(
    tmp_path: Path, name: str, how: dict[str, Any]
):
    ((expected, *_), (found, *_), (crossed, *_)) = (
        on_ranks(2, story, tmp_path / place, name, *steps)
        for place, steps in {"whole": (DDP, None), "sharded": (how, None), "crossed": (DDP, how)}.items()
    )
    for each in (found, crossed):
        assert each["losses"] == pytest.approx(expected["losses"], rel=1e-5)
        for weight, values in expected["weights"].items():
            assert each["weights"][weight] == pytest.approx(values, abs=1e-4), weight
    if name == "experts":
        assert found["weights"][BIAS] == crossed["weights"][BIAS] == expected["weights"][BIAS]


def test_the_bias_of_experts_moves_by_the_load_of_all_ranks_and_micro_batches_in_each_step(tmp_path: Path):
    (alone,) = on_ranks(1, story, tmp_path / "1", "experts", DDP | {"microBatchSize": 4}, None)
    for found in on_ranks(2, story, tmp_path / "2", "experts", DDP, None):
        assert found["weights"][BIAS] == alone["weights"][BIAS]
    moves = [value / SPEED for value in alone["weights"][BIAS]]
    assert any(moves), "no load was uneven"
    assert all(abs(move - round(move)) < 1e-3 and abs(move) <= STEPS + 1e-3 for move in moves)


def test_the_bias_of_a_frozen_router_stays_and_evaluations_tell_the_load(tmp_path: Path):
    found, _ = on_ranks(2, story, tmp_path, "adapters", DDP, None)
    (bias,) = (values for name, values in found["weights"].items() if name.endswith(BIAS))
    assert bias == [0.0] * 4
    (figures,) = found["figures"]
    assert 1 <= figures["busiestExpert"] <= 4
    assert 0 <= figures["idleExperts"] <= 3
