"""Images on real ranks: neither their number nor the micro-batch changes what is learned, nor what chance draws."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support.ranks.gloo import on_ranks
from support.ranks.image_stories import Course, image_scores, trained_on_images

pytestmark = pytest.mark.timeout(300)  # each test starts processes that import what scores need


def assert_same(found: Course, expected: Course) -> None:
    assert found[1] == pytest.approx(expected[1], rel=0, abs=1e-6)
    assert found[0].keys() == expected[0].keys()
    for name, weight in found[0].items():
        torch.testing.assert_close(weight, expected[0][name], rtol=0, atol=1e-6)


def test_mixed_images_are_learned_alike_at_once_in_halves_and_on_two_ranks(tmp_path: Path):
    (whole,) = on_ranks(1, trained_on_images, tmp_path / "whole", 8)
    (halves,) = on_ranks(1, trained_on_images, tmp_path / "halves", 4)
    assert_same(halves, whole)
    for shared in on_ranks(2, trained_on_images, tmp_path / "shared", 4):
        assert_same(shared, whole)


def test_the_scores_of_images_are_the_same_on_any_number_of_ranks(tmp_path: Path):
    (alone,) = on_ranks(1, image_scores, tmp_path / "1")
    assert alone["classification"]["total"] == 5
    for found in on_ranks(2, image_scores, tmp_path / "2"):
        assert without_floats(found) == without_floats(alone)
        assert found["loss"] == pytest.approx(alone["loss"], abs=1e-6)


def without_floats(scores: dict[str, Any]) -> Any:
    return scores["accuracy"], scores["classification"]["confusion"], scores["classification"]["labels"]
