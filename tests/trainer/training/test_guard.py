import math

from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.optimization import Guard
from deepseek_trainer.training.guard import NormWatch, Verdict

WATCHFUL = Guard(spike_factor=5.0)


def settled(norm: float = 1.0) -> NormWatch:
    watch = NormWatch()
    for _ in range(20):
        assert watch.judge(norm, WATCHFUL) is Verdict.GOOD
    return watch


def test_a_norm_far_above_the_mean_is_a_spike_once_the_mean_has_settled():
    assert NormWatch().judge(1e9, WATCHFUL) is Verdict.GOOD
    assert settled().judge(4.9, WATCHFUL) is Verdict.GOOD
    assert settled().judge(5.1, WATCHFUL) is Verdict.SPIKE


def test_without_a_factor_nothing_finite_is_a_spike():
    assert settled().judge(1e30, Guard()) is Verdict.GOOD


def test_what_is_skipped_is_counted_and_leaves_the_mean_alone():
    watch = settled()
    assert [watch.judge(norm, WATCHFUL) for norm in (math.nan, math.inf, 100.0)] == [
        Verdict.NOT_FINITE,
        Verdict.NOT_FINITE,
        Verdict.SPIKE,
    ]
    assert (watch.skipped, watch.mean) == (3, 1.0)
    watch.judge(1.0, WATCHFUL)
    assert watch.skipped == 0


@given(st.lists(st.floats(0.1, 10.0), min_size=1, max_size=19))
def test_the_mean_of_the_first_norms_is_their_plain_mean(norms: list[float]):
    watch = NormWatch()
    for norm in norms:
        watch.judge(norm, WATCHFUL)
    assert math.isclose(watch.mean, sum(norms) / len(norms), rel_tol=1e-9)
