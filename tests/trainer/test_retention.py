"""Which checkpoints stay."""

import pytest

from deepseek_trainer.contract.config import Retention
from deepseek_trainer.retention import kept


@pytest.mark.parametrize(
    ("steps", "keep_last", "keep_best", "best", "stay"),
    [
        ([], 1, True, None, []),
        ([10], 3, True, 10, [10]),
        ([10, 20, 30, 40], 2, True, 10, [10, 30, 40]),
        ([10, 20, 30, 40], 2, True, 40, [30, 40]),
        ([10, 20, 30, 40], 2, False, 10, [30, 40]),
        ([10, 20, 30, 40], 1, True, None, [40]),
        ([10, 20, 30, 40], 1, True, 15, [40]),  # the best step was never saved
        ([40, 10, 30, 20], 2, True, 20, [20, 30, 40]),
    ],
)
def test_the_newest_and_the_best_stay(
    steps: list[int], keep_last: int, keep_best: bool, best: int | None, stay: list[int]
) -> None:
    assert sorted(kept(steps, Retention(keep_last=keep_last, keep_best=keep_best), best)) == stay
