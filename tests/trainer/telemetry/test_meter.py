"""What a rank measures, by a clock that is set by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.optimization import Precision
from deepseek_trainer.telemetry.meter import Meter, Ranks, gpu_at_work, peak_memory

CPU = torch.device("cpu")


class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def a_step(meter: Meter, clock: Clock, waited: float, alone: float, exchanged: float = 9.0) -> None:
    with meter.waiting():
        clock.time += waited
    clock.time += 5.0  # between loading and computing
    meter.begin()
    clock.time += alone
    meter.end()
    clock.time += exchanged
    meter.add()


def test_a_meter_adds_up_waits_and_the_time_before_others_are_waited_for_until_its_contribution():
    clock = Clock()
    meter = Meter(CPU, clock)
    a_step(meter, clock, waited=0.25, alone=2.0)
    a_step(meter, clock, waited=0.5, alone=4.0)
    contribution = meter.contribution(1, 3)
    assert contribution[:6] == [0.0, 0.75, 0.0, 0.0, 6.0, 0.0]
    assert contribution[6:] == [0.0, pytest.approx(peak_memory(CPU), rel=0.1), 0.0]
    assert meter.contribution(0, 1)[:2] == [0.0, 0.0]


def test_a_rank_that_computes_in_step_with_others_measures_no_time_alone():
    clock = Clock()
    meter = Meter(CPU, clock)
    meter.begin()
    clock.time += 3.0
    meter.add()
    assert meter.contribution(0, 1)[1] == 0.0


def test_a_wait_that_fails_leaves_its_error_to_the_loop():
    meter = Meter(CPU, Clock())
    with pytest.raises(OSError, match="gone"), meter.waiting():
        raise OSError("gone")


@given(st.lists(st.tuples(*[st.floats(0, 1e6)] * 3), min_size=1, max_size=9))
def test_the_sum_over_ranks_has_what_each_measured(rows: list[tuple[float, float, float]]):
    size = len(rows)
    contributions = [[0.0] * (3 * size) for _ in rows]
    for rank, row in enumerate(rows):
        contributions[rank][rank::size] = row
    ranks = Ranks.of([sum(column) for column in zip(*contributions, strict=True)])
    assert list(zip(ranks.waited, ranks.alone, ranks.memory, strict=True)) == rows


@pytest.mark.parametrize(
    ("alone", "skew", "slowest"),
    [([1.0], None, None), ([0.0, 0.0], None, None), ([2.0, 1.0], 2.0, 0), ([1.0, 2.0, 5.0], 2.5, 2)],
    ids=["one rank", "in step", "two", "three"],
)
def test_skew_is_the_slowest_rank_over_the_median(alone: list[float], skew: float | None, slowest: int | None):
    ranks = Ranks(waited=[0.0] * len(alone), alone=alone, memory=[0.0] * len(alone))
    assert (ranks.skew, ranks.slowest) == (skew, slowest)


def test_memory_that_was_given_back_stays_in_the_peak():
    before = peak_memory(CPU)
    held = bytearray(before)
    held[::4096] = b"x" * len(held[::4096])
    del held
    assert peak_memory(CPU) > 1.5 * before


def test_on_the_cpu_no_gpu_is_at_work():
    assert gpu_at_work(CPU, Precision.BF16) is None
