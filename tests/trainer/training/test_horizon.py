from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.training.horizon import Horizon


def horizon(rows: int = 10, **optimization: object) -> Horizon:
    return Horizon.of(OptimizationSpec(global_batch_size=4, **optimization), rows)


def test_epochs_become_steps_and_the_last_batch_may_reach_into_the_next_epoch():
    assert horizon(rows=10, epochs=2).steps == 5
    assert horizon(rows=9).steps == 7  # 3 epochs by default
    assert horizon(rows=10, max_steps=4).steps == 4


def test_a_part_of_an_epoch_is_a_part_of_its_steps():
    assert [horizon(rows=10, epochs=epochs).steps for epochs in (0.5, 1.5, 0.01, 1.2)] == [2, 4, 1, 3]


@given(st.integers(1, 400), st.integers(1, 10**6))
def test_epochs_in_hundredths_take_no_step_too_many(hundredths: int, rows: int):
    steps = horizon(rows=rows, epochs=hundredths / 100).steps
    assert steps == -(-hundredths * rows // 400)


LENGTHS = st.fixed_dictionaries(
    {}, optional={"max_steps": st.integers(1, 9), "max_minutes": st.integers(1, 3)}
) | st.fixed_dictionaries({"epochs": st.integers(1, 4)})


@given(LENGTHS, LENGTHS)
def test_of_two_runs_at_most_one_goes_beyond_the_other_and_then_ends_with_it_or_after_it(one: dict, other: dict):
    first, second = horizon(**one), horizon(**other)
    assert not (first.goes_beyond(second) and second.goes_beyond(first))
    if first.goes_beyond(second):
        ended = [(step, 20.0 * step) for step in range(20) if first.is_reached(step, 20.0 * step)]
        assert all(second.is_reached(*end) for end in ended)


def test_with_a_time_budget_alone_only_time_ends_the_run():
    timed = horizon(max_minutes=0.5)
    assert (timed.steps, timed.seconds) == (None, 30)
    assert not timed.is_reached(10**9, 29.9)
    assert timed.is_reached(1, 30.0)


def test_of_steps_and_time_the_first_ends_the_run():
    both = horizon(max_steps=4, max_minutes=1)
    assert both.is_reached(4, 1.0)
    assert both.is_reached(1, 60.0)
    assert not both.is_reached(3, 59.0)


def test_the_length_of_a_timed_run_is_expected_from_its_pace():
    assert horizon(max_minutes=1).expected_steps(10, 15.0) == 40
    assert horizon(max_steps=30, max_minutes=1).expected_steps(10, 15.0) == 30
    assert horizon(max_minutes=1).expected_steps(0, 0.0) == 0


def test_a_long_run_logs_two_hundred_steps_and_a_timed_one_each_tenth():
    assert [step for step in range(1, 7) if horizon(max_steps=405).is_logged(step)] == [2, 4, 6]
    assert [step for step in range(1, 25) if horizon(max_minutes=1).is_logged(step)] == [10, 20]
