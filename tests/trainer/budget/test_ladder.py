"""What a job does without when memory runs out; that it goes on is tested in test_climb.py and with real ranks."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.budget.ladder import climbed, ladder, promise, settings
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.method import MethodSpec, MethodType
from deepseek_trainer.contract.optimization import OptimizationSpec, Optimizer, Recompute, Strategy
from support.builders.data import a_config

NAMES = ("microBatchSize", "recompute", "logitsMebibytes", "strategy", "offload", "optimizer")
FIELDS = ("micro_batch_size", "recompute", "logits_mebibytes", "strategy", "offload", "optimizer")


def a_job(ranks: int = 1, method: MethodType = MethodType.FULL, **optimization: Any) -> TrainingConfig:
    """A job of `ranks` ranks; `optimization` in the job file's own names."""
    parts = {"optimization": OptimizationSpec.model_validate(optimization), "method": MethodSpec(type=method)}
    return a_config().model_copy(update={"num_nodes": ranks} | parts)


@st.composite
def jobs(draw: st.DrawFn) -> TrainingConfig:
    """Any that the API lets through."""
    ranks = draw(st.integers(1, 64))
    optimizer, method = draw(st.sampled_from(Optimizer)), draw(st.sampled_from(MethodType))
    is_shardable = optimizer is Optimizer.ADAMW and method is not MethodType.QLORA
    strategy = draw(st.sampled_from(Strategy)) if is_shardable else Strategy.DDP
    return a_job(
        ranks,
        method,
        globalBatchSize=ranks * draw(st.integers(1, 2**14)),
        microBatchSize=draw(st.integers(1, 2**16)),
        optimizer=optimizer,
        recompute=draw(st.sampled_from(Recompute)),
        logitsMebibytes=draw(st.integers(1, 2**16)),
        strategy=strategy,
        offload=strategy is Strategy.FSDP and draw(st.booleans()),
        seed=draw(st.integers(0, 9)),
    )


def rows(config: TrainingConfig) -> int:
    """Of the largest micro-batch that a rank really makes."""
    optimization = config.optimization
    return min(optimization.micro_batch_size, optimization.global_batch_size // config.world_size)


def cost(config: TrainingConfig) -> tuple[int, ...]:
    """More of any of these is more memory."""
    optimization = config.optimization
    recompute = (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL).index(optimization.recompute)
    is_rounded = optimization.optimizer is Optimizer.ADAMW_8BIT
    shards = (Strategy.DDP, Strategy.ZERO1, Strategy.ZERO2, Strategy.ZERO3, Strategy.FSDP).index(optimization.strategy)
    return rows(config), -recompute, optimization.logits_mebibytes, -shards, -optimization.offload, -is_rounded


@given(jobs())
def test_a_ladder_ends_and_changes_nothing_but_its_settings(config: TrainingConfig):
    rungs = [config, *ladder(config)]
    assert len(rungs) <= 1 + 17 + 2 + 1 + 4, "65536 is halved 16 times, ZeRO1 shards more three times"
    for rung in rungs:
        changed = {name: getattr(config.optimization, name) for name in FIELDS}
        restored = rung.optimization.model_copy(update=changed)
        assert rung.model_copy(update={"optimization": restored}) == config


@given(jobs())
def test_every_rung_is_a_job_that_the_api_lets_through_and_differs_from_the_one_below(config: TrainingConfig):
    rungs = [config, *ladder(config)]
    for rung in rungs:
        OptimizationSpec.model_validate(rung.optimization.model_dump())
        assert rung.optimization.strategy is Strategy.DDP or rung.method.type is not MethodType.QLORA
    assert len({tuple(settings(rung).values()) for rung in rungs}) == len(rungs)


@given(jobs())
def test_a_rung_never_takes_more_memory_than_the_one_below(config: TrainingConfig):
    found = [cost(rung) for rung in (config, *ladder(config))]
    assert found == sorted(found, reverse=True)
    assert found[-1][:2] == (1, -2)
    assert found[-1][2] <= 32


def test_a_job_of_two_ranks_climbs_to_single_rows_then_recomputes_then_cuts_the_loss_then_shards_then_offloads():
    found = [settings(rung) for rung in ladder(a_job(2, globalBatchSize=12, microBatchSize=8))]
    assert [tuple(each.values()) for each in found] == [
        (3, "None", 256, "DDP", False, "AdamW"),  # a rank has 6 of the 12 rows
        (1, "None", 256, "DDP", False, "AdamW"),
        (1, "Selective", 256, "DDP", False, "AdamW"),
        (1, "Full", 256, "DDP", False, "AdamW"),
        (1, "Full", 32, "DDP", False, "AdamW"),
        (1, "Full", 32, "FSDP", False, "AdamW"),
        (1, "Full", 32, "FSDP", True, "AdamW"),
    ]
    assert all(tuple(each) == NAMES for each in found)


@given(jobs())
def test_the_optimizer_changes_last_and_only_where_adamw_cannot_be_sharded(config: TrainingConfig):
    *others, last = [config, *ladder(config)]
    assert {rung.optimization.optimizer for rung in others} <= {config.optimization.optimizer}
    assert {promise(config, rung) for rung in others} <= {"as asked for, up to rounding"}
    is_whole = (config.optimization.strategy, config.optimization.optimizer) == (Strategy.DDP, Optimizer.ADAMW)
    is_rounded = is_whole and (config.world_size == 1 or config.method.type is MethodType.QLORA)
    expected = Optimizer.ADAMW_8BIT if is_rounded else config.optimization.optimizer
    assert last.optimization.optimizer is expected
    assert promise(config, last).startswith("another one") is is_rounded


def test_zero_shards_more_from_stage_to_stage_and_in_the_end_without_deepspeed():
    found = ladder(a_job(2, microBatchSize=1, recompute="Full", logitsMebibytes=8, strategy="ZeRO1"))
    rungs = [(each["logitsMebibytes"], each["strategy"], each["offload"]) for each in map(settings, found)]
    assert rungs == [(8, "ZeRO2", False), (8, "ZeRO3", False), (8, "FSDP", False), (8, "FSDP", True)]


@pytest.mark.parametrize(
    "job",
    [
        a_job(1),
        a_job(2, optimizer="Muon"),
        a_job(2, optimizer="AdamW8bit"),
        a_job(2, MethodType.QLORA),
    ],
    ids=["a single rank", "Muon", "AdamW8bit", "QLoRA"],
)
def test_where_shards_save_nothing_or_are_not_allowed_there_is_no_such_rung(job: TrainingConfig):
    assert [*ladder(job)][-1].optimization.strategy is Strategy.DDP


@pytest.mark.parametrize(
    "job",
    [
        a_job(2, onOutOfMemory="Fail"),
        a_job(1, microBatchSize=1, recompute="Full", logitsMebibytes=32, optimizer="AdamW8bit"),
        a_job(2, microBatchSize=1, recompute="Full", logitsMebibytes=1, strategy="FSDP", offload=True),
    ],
    ids=["not wanted", "one rank", "offloads already"],
)
def test_a_job_that_wants_none_or_has_nothing_left_has_no_rung(job: TrainingConfig):
    assert not [*ladder(job)]


@given(jobs(), st.integers(0, 40))
def test_a_rung_is_found_by_its_number_and_the_last_one_by_any_higher(config: TrainingConfig, number: int):
    rungs = [config, *ladder(config)]
    assert climbed(config, number) == rungs[min(number, len(rungs) - 1)]
