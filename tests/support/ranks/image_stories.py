"""What each of several ranks does with images; here, because its processes must be able to import it."""

from pathlib import Path
from typing import Any

from torch import Tensor

from deepseek_trainer.run.assessment import assessed
from deepseek_trainer.worker.distributed import World
from support.builders.images import ALL_AUGMENTATION, Unprepared, an_image_job, an_image_loop
from support.builders.loop import weights

Course = tuple[dict[str, Tensor], list[float | None]]


def trained_on_images(world: World, root: Path, micro_batch: int, strategy: str = "DDP", **job: Any) -> Course:
    """Weights and losses of six steps of eight images, which chance changes and mixes."""
    config = an_image_job(
        augmentation=ALL_AUGMENTATION, learningRate=0.0005, microBatchSize=micro_batch, strategy=strategy, **job
    )
    loop = an_image_loop(config, root, world=world)
    loop.run()
    with loop.learner.finished():
        return weights(loop), loop.reporter.losses


def image_scores(world: World, root: Path) -> dict[str, Any]:
    """Of five pictures, which two ranks cannot share evenly."""
    config = an_image_job(maxSteps=1)
    loop = an_image_loop(config, root, world=world)
    loop.run()
    return assessed(loop, Unprepared(config), loop.measure())["scores"]
