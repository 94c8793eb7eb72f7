import pytest

from deepseek_trainer.contract.optimization import OptimizationSpec, Schedule
from deepseek_trainer.training.schedule import learning_rate


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


def test_warm_up_is_cut_to_a_tenth_of_a_run_that_is_shorter_than_it():
    assert rates(20, warmup_steps=100)[2] == 1.0


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
