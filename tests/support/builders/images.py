"""Pictures of two kinds, jobs that tell them apart, and loops that train on them."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from deepseek_trainer.checkpoints.saver import Saver
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.run.assembly import a_learner
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.tasks.images.models import scratch_model
from deepseek_trainer.tasks.images.preparation import dtype_of
from deepseek_trainer.tasks.images.task import ImageTask
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.savepoints import Savepoints
from deepseek_trainer.training.state import RunState
from deepseek_trainer.worker.distributed import World
from support.builders.data import CLAIM
from support.builders.loop import ALONE, DIGEST, Recorder

Pixels = npt.NDArray[np.uint8]

CLASSES = ("dark", "light")
SIZE = {"height": 16, "width": 16, "channels": 1}
RESNET = {"resnet": {"stemWidth": 8, "stages": [{"width": 32, "blocks": 1}], "groups": 8}}
VIT = {"vit": {"patchSize": 8, "hiddenSize": 16, "numLayers": 2, "numHeads": 2, "intermediateSize": 16}}
ALL_AUGMENTATION = {
    "rotationDegrees": 15,
    "crop": 0.8,
    "shift": 0.1,
    "brightness": 0.2,
    "contrast": 0.2,
    "mixUpAlpha": 0.4,
    "cutMixAlpha": 1.0,
}


def a_picture(seed: int, *, light: bool = False, shape: Sequence[int] = (20, 24)) -> Pixels:
    """Noise, in the darker or the lighter half."""
    return (np.random.default_rng(seed).integers(0, 128, tuple(shape)) + 127 * light).astype(np.uint8)


def encoded(pixels: Pixels, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_pictures(paths: Paths, place: str = "train", each: int = 6) -> None:
    """`each` pictures of both classes, in folders."""
    for name in CLASSES:
        for i in range(each):
            write_file(paths, f"{place}/{name}/{i}.png", encoded(a_picture(i, light=name == "light")))


def write_file(paths: Paths, name: str, content: bytes) -> None:
    file = paths.claim(CLAIM, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def an_image_job(
    *,
    vision: Mapping[str, Any] | None = RESNET,
    base: Mapping[str, Any] | None = None,
    augmentation: Mapping[str, Any] | None = None,
    size: Mapping[str, Any] = SIZE,
    data: Mapping[str, Any] | None = None,
    checkpoint: Mapping[str, Any] | None = None,
    max_rows: int = 1000,
    **optimization: Any,
) -> TrainingConfig:
    images = dict(size) | ({"augmentation": augmentation} if augmentation else {})
    return TrainingConfig.model_validate(
        {
            "job": {"namespace": "ml", "name": "demo"},
            "numNodes": 1,
            "numProcPerNode": 1,
            "model": {"vision": vision, "base": base},
            "data": {
                "format": "Images",
                "train": {"claimName": CLAIM, "path": "train"},
                "validationFraction": 0.3,
                "images": images,
            }
            | (data or {}),
            "method": {},
            "optimization": {"globalBatchSize": 8, "learningRate": 0.003, "maxSteps": 6, "warmupSteps": 0}
            | optimization,
            "checkpoint": checkpoint or {"interval": {"steps": 2}},
            "evaluation": {"intervalSteps": 3, "maxRows": max_rows},
            "export": {},
        }
    )


class Unprepared(ImageTask):
    """An image task without prepared data: its classes are known."""

    classes = CLASSES

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config, Paths(Path()), Vault("ml/demo", Purpose.DATA), Path())


def some_rows(task: ImageTask, count: int) -> Rows[Any]:
    """Of both classes, in turn."""
    rows = np.zeros(count, dtype_of(SIZE))
    for i in range(count):
        rows[i]["pixels"] = a_picture(i, light=bool(i % 2), shape=(16, 16))[:, :, None]
        rows[i]["label"] = i % 2
    return Rows([rows], task.collate)


def an_image_loop(
    config: TrainingConfig, directory: Path, *, stop_after: int | None = None, world: World = ALONE
) -> Loop:
    """A loop over 22 pictures, where its directory's newest checkpoint left off."""
    torch.manual_seed(1 + world.rank)
    task = Unprepared(config)
    assert config.model.vision is not None
    assert config.data.images is not None
    model = scratch_model(config.model.vision, config.data.images, CLASSES, seed=0).train()
    learner = a_learner(task, model, config.optimization, world)
    rows, state = some_rows(task, 22), RunState()
    cursor = Cursor(seed=3, rows=len(rows), global_batch=config.optimization.global_batch_size, data_digest=DIGEST)
    vault = Vault("ml/demo", Purpose.CHECKPOINT)
    store = CheckpointStore(directory, vault, rank=world.rank, world_size=world.size, exchange=world.gather)
    if info := store.latest():
        learner.load(store, info)
        state = RunState.from_json(info.meta["run"])
        cursor = Cursor.from_state(
            bytes.fromhex(info.meta["cursor"]), rows=len(rows), global_batch=cursor.global_batch, data_digest=DIGEST
        )
    saver = Saver(store, config.checkpoint.retention, world.beside().gather)
    savepoints = Savepoints(saver, config.checkpoint, {"jobUid": "uid"})
    loop = Loop(config, world, learner, rows, some_rows(task, 5), cursor, state, savepoints, Recorder(), lambda: False)
    if stop_after is not None:
        loop.stop_requested = lambda: loop.state.step >= stop_after
    return loop
