"""Training on images: what it is measured by, and that no kill and no micro-batch changes it."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from support.builders.images import ALL_AUGMENTATION, RESNET, VIT, an_image_job, an_image_loop
from support.builders.loop import run_until_stopped, weights


@pytest.fixture(autouse=True)
def group(tmp_path: Path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("vision", [RESNET, VIT], ids=["resnet", "vit"])
def test_a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not(tmp_path: Path, vision: Any):
    job = an_image_job(vision=vision, augmentation=ALL_AUGMENTATION, microBatchSize=4, emaDecay=0.5)
    whole = an_image_loop(job, tmp_path / "whole")
    whole.run()
    run_until_stopped(an_image_loop(job, tmp_path / "parts", stop_after=3))
    resumed = an_image_loop(job, tmp_path / "parts")
    resumed.run()
    assert resumed.reporter.losses == whole.reporter.losses[3:]
    assert resumed.reporter.results[-1] == whole.reporter.results[-1]
    expected, found = weights(whole), weights(resumed)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("vision", [RESNET, VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("augmentation", [None, {"mixUpAlpha": 0.4}, {"cutMixAlpha": 1.0}, ALL_AUGMENTATION], ids=str)
def test_half_the_micro_batch_changes_no_weight_and_no_loss(tmp_path: Path, vision: Any, augmentation: Any):
    """Attention ignores the bias of keys: Adam makes steps of what rounding leaves of its gradient, which is none."""
    whole, halves, single = (course(tmp_path, vision, augmentation, micro_batch) for micro_batch in (8, 4, 1))
    assert halves[0] == pytest.approx(whole[0], rel=0, abs=1e-6)
    assert single[0] == pytest.approx(whole[0], rel=0, abs=1e-6)
    for name in (name for name in whole[1] if not name.endswith("k_proj.bias")):
        torch.testing.assert_close(halves[1][name], whole[1][name], rtol=0, atol=1e-6)


def course(
    root: Path, vision: Any, augmentation: Any, micro_batch: int
) -> tuple[list[float | None], dict[str, Tensor]]:
    """Losses and weights of six steps."""
    optimization = {"microBatchSize": micro_batch, "labelSmoothing": 0.1, "learningRate": 0.0005}
    loop = an_image_loop(
        an_image_job(vision=vision, augmentation=augmentation, **optimization), root / f"by {micro_batch}"
    )
    loop.run()
    return loop.reporter.losses, weights(loop)


def test_augmentation_changes_what_is_learned_and_not_what_is_evaluated(tmp_path: Path):
    plain, varied = (
        an_image_loop(an_image_job(augmentation=augmentation, maxSteps=1), tmp_path / str(i))
        for i, augmentation in enumerate((None, ALL_AUGMENTATION))
    )
    assert plain.measure() == varied.measure()
    plain.run()
    varied.run()
    assert plain.reporter.losses != varied.reporter.losses


def test_an_evaluation_tells_the_share_of_pictures_that_are_recognised(tmp_path: Path):
    loop = an_image_loop(an_image_job(maxSteps=30, learningRate=0.01), tmp_path)
    loop.run()
    assert loop.measure().figures == {"accuracy": 1.0}
    assert loop.measure().loss < 0.3
