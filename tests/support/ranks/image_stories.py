"""What each of several ranks does with images; here, because its processes must be able to import it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from deepseek_trainer.run.assessment import assessed
from deepseek_trainer.worker.distributed import World
from support.builders.images import ALL_AUGMENTATION, RESNET, VIT, Unprepared, an_image_job, an_image_loop

MODELS: Final = {"resnet": RESNET, "vit": VIT}


@dataclass(frozen=True)
class Course:
    """Six steps of eight images, which chance changes and mixes, and what came of them for five others."""

    losses: list[float | None]
    weights: dict[str, Tensor]
    scores: dict[str, Any]


def courses(world: World, root: Path, micro_batch: int, strategy: str) -> dict[str, Course]:
    """Of each kind of model."""
    return {name: _course(world, root / name, vision, micro_batch, strategy) for name, vision in MODELS.items()}


def _course(world: World, root: Path, vision: Any, micro_batch: int, strategy: str) -> Course:
    optimization = {"microBatchSize": micro_batch, "strategy": strategy, "learningRate": 0.0005}
    config = an_image_job(vision=vision, augmentation=ALL_AUGMENTATION, **optimization)
    loop = an_image_loop(config, root, world=world)
    loop.run()
    scores = assessed(loop, Unprepared(config), loop.measure())["scores"]
    with loop.learner.finished() as model:
        return Course(loop.reporter.losses, {name: p.detach().clone() for name, p in model.named_parameters()}, scores)
