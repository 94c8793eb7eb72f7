import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.optimization import OptimizationSpec, Schedule
from deepseek_trainer.training.schedule import learning_rate, refuse_endless_warmup, warmup_steps


def rates(total: int, **optimization: object) -> list[float]:
    spec = OptimizationSpec(learning_rate=1.0, **optimization)
    return [learning_rate(step, total, spec) for step in range(total)]


def test_learning_rate_rises_linearly_then_falls_along_half_a_cosine():
    got = rates(100, warmup_steps=10)
    assert got[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert got[10] == 1.0
    assert got[55] == pytest.approx(0.55)  # half way down from 1.0 to 0.1
    assert got[99] == pytest.approx(0.1, abs=1e-3)


def test_learning_rate_stays_at_its_peak_when_the_schedule_is_constant():
    assert rates(50, warmup_steps=5, schedule=Schedule.CONSTANT)[5:] == [1.0] * 45


def test_the_default_warm_up_is_a_tenth_of_a_short_run_and_a_hundred_steps_of_a_long_one():
    assert [rate.index(1.0) for rate in (rates(20), rates(500), rates(4000))] == [1, 49, 99]


@given(st.integers(1, 200), st.integers(0, 200), st.sampled_from(Schedule))
def test_a_warm_up_that_was_asked_for_has_the_steps_that_were_asked_for(total: int, warmup: int, schedule: Schedule):
    assume(warmup <= total)
    got = rates(total, warmup_steps=warmup, schedule=schedule)
    assert got[:warmup] == pytest.approx([(i + 1) / warmup for i in range(warmup)])
    assert all(rate <= 1.0 for rate in got)


@given(st.integers(1, 300), st.floats(0, 1))
def test_a_share_of_the_run_is_as_many_steps_rounded_up(total: int, fraction: float):
    steps = warmup_steps(total, OptimizationSpec(warmup_fraction=fraction))
    assert steps is not None
    assert fraction * total - 1e-6 <= steps < fraction * total + 1


def test_a_warm_up_that_is_longer_than_the_run_is_refused_and_one_as_long_is_not():
    def spec(steps: int) -> OptimizationSpec:
        return OptimizationSpec(warmup_steps=steps, epochs=2, global_batch_size=4)

    refuse_endless_warmup(spec(5), rows=10)
    with pytest.raises(ConfigError, match=r"warmupSteps: 6 is more than the 5 steps .*warmupFraction: 0.1"):
        refuse_endless_warmup(spec(6), rows=10)
    refuse_endless_warmup(OptimizationSpec(warmup_steps=999, max_minutes=1), rows=10)


def test_linear_falls_in_a_line_to_zero():
    got = rates(20, warmup_steps=4, schedule=Schedule.LINEAR)
    assert got[4:] == pytest.approx([1 - i / 16 for i in range(16)])


def test_a_share_of_a_run_that_time_ends_is_a_share_of_its_time():
    spec = OptimizationSpec(learning_rate=1.0, warmup_fraction=0.2, schedule=Schedule.LINEAR)
    got = [learning_rate(7, None, spec, time_spent=spent) for spent in (0.0, 0.1, 0.2, 0.6, 1.0, 1.3)]
    assert got == pytest.approx([0.01, 0.5, 1.0, 0.5, 0.0, 0.0])
    always = OptimizationSpec(learning_rate=1.0, warmup_fraction=1.0)
    assert [learning_rate(7, None, always, time_spent=spent) for spent in (0.5, 1.0)] == [0.5, 1.0]


def test_a_run_of_one_step_trains_at_the_peak():
    assert rates(1) == [1.0]


def test_restarts_are_equally_long_cosines_from_the_peak():
    got = rates(100, warmup_steps=0, schedule=Schedule.COSINE_RESTARTS, cycles=4)
    assert [got[i] for i in (0, 25, 50, 75)] == [1.0] * 4
    assert got[12] == pytest.approx(got[37])
    assert got[24] == pytest.approx(0.1, abs=5e-3)


def test_wsd_stays_at_the_peak_and_then_falls_to_zero_in_a_line():
    got = rates(100, warmup_steps=10, schedule=Schedule.WSD, decay_fraction=0.5)
    assert got[10:56] == [1.0] * 46
    assert got[55:] == pytest.approx([(100 - i) / 45 for i in range(55, 100)])


def test_a_time_budget_takes_the_schedule_to_its_end():
    spec = OptimizationSpec(learning_rate=1.0, warmup_steps=2)
    assert [learning_rate(step, None, spec, time_spent=0.0) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert learning_rate(50, None, spec, time_spent=0.5) == pytest.approx(0.55)
    assert learning_rate(50, None, spec, time_spent=1.2) == pytest.approx(0.1)
    assert learning_rate(99, 100, spec, time_spent=0.5) == pytest.approx(0.1, abs=1e-3)
