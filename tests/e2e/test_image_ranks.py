"""Images on real ranks: neither their number nor the micro-batch changes what is learned, nor what chance draws."""

from pathlib import Path
from typing import Any

import pytest
import torch

from support.ranks.gloo import on_ranks
from support.ranks.image_stories import MODELS, Course, courses


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """In one micro-batch of one rank."""
    (found,) = on_ranks(1, courses, tmp_path_factory.mktemp("alone"), 8, "DDP")
    return found


@pytest.mark.timeout(300)  # processes import what scores need
@pytest.mark.parametrize("strategy", ["DDP", "FSDP"])
def test_two_ranks_learn_mixed_images_as_one_does_and_give_the_same_scores(
    tmp_path: Path, alone: dict[str, Course], strategy: str
):
    for found in on_ranks(2, courses, tmp_path, 2, strategy):
        for name in MODELS:
            assert_same(found[name], alone[name])


def assert_same(found: Course, expected: Course) -> None:
    assert found.losses == pytest.approx(expected.losses, rel=0, abs=1e-6)
    assert found.weights.keys() == expected.weights.keys()
    for name in found.weights.keys() - ignored(found):
        torch.testing.assert_close(found.weights[name], expected.weights[name], rtol=0, atol=1e-6)
    assert found.scores["classification"] == expected.scores["classification"]
    assert found.scores["classification"]["total"] == 5
    assert found.scores["loss"] == pytest.approx(expected.scores["loss"], abs=1e-6)


def ignored(course: Course) -> set[str]:
    """Attention ignores the bias of keys: Adam makes steps of what rounding leaves of its gradient, which is none."""
    return {name for name in course.weights if name.endswith("k_proj.bias")}
