"""Which checkpoints stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.retention import Retention

STEPS = st.sets(st.integers(0, 200), max_size=40)
RULES = st.builds(
    Retention, keep_last=st.integers(1, 10), keep_best=st.booleans(), keep_every=st.none() | st.integers(1, 60)
)


@pytest.mark.parametrize(
    ("steps", "retention", "best", "stay"),
    [
        ([], Retention(keep_last=1), None, []),
        ([10], Retention(keep_last=3), 10, [10]),
        ([10, 20, 30, 40], Retention(keep_last=2), 10, [10, 30, 40]),
        ([10, 20, 30, 40], Retention(keep_last=2), 40, [30, 40]),
        ([10, 20, 30, 40], Retention(keep_last=2, keep_best=False), 10, [30, 40]),
        ([10, 20, 30, 40], Retention(keep_last=1), None, [40]),
        ([10, 20, 30, 40], Retention(keep_last=1), 15, [40]),  # the best step was never saved
        ([40, 10, 30, 20], Retention(keep_last=2), 20, [20, 30, 40]),
        ([10, 20, 30, 40], Retention(keep_last=1, keep_every=20), None, [20, 40]),
        ([10, 20, 30, 40], Retention(keep_last=1, keep_every=20), 10, [10, 20, 40]),
        ([10, 25, 30], Retention(keep_last=1, keep_every=20), None, [30]),  # no step is a multiple
    ],
)
def test_the_newest_the_best_and_every_nth_stay(
    steps: list[int], retention: Retention, best: int | None, stay: list[int]
) -> None:
    assert sorted(retention.kept(steps, best)) == stay


@given(steps=STEPS, retention=RULES, best=st.none() | st.integers(0, 200))
def test_each_rule_keeps_what_it_names_and_nothing_else_stays(
    steps: set[int], retention: Retention, best: int | None
) -> None:
    stay = retention.kept(steps, best)
    for step in steps:
        is_new = sum(other > step for other in steps) < retention.keep_last
        is_best = retention.keep_best and step == best
        is_regular = retention.keep_every is not None and step % retention.keep_every == 0
        assert (step in stay) == (is_new or is_best or is_regular)
    assert stay <= steps


@given(steps=STEPS, retention=RULES, best=st.none() | st.integers(0, 200))
def test_pruning_after_each_save_leaves_what_pruning_once_leaves(
    steps: set[int], retention: Retention, best: int | None
) -> None:
    stay: frozenset[int] = frozenset()
    for step in sorted(steps):
        stay = retention.kept(stay | {step}, best)
    assert stay == retention.kept(steps, best)
