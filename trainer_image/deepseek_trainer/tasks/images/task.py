"""Image classification: which of the job's classes a picture is of."""

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel

from deepseek_trainer.base_model.directory import PREPROCESSOR
from deepseek_trainer.base_model.source import prepared_model, prepared_settings
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.images import ImagesSpec
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.data.draws import Draws, RowArray
from deepseek_trainer.evaluation.classification import HEADLINES, classification
from deepseek_trainer.model.description import config_json
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.model.modes import answering
from deepseek_trainer.storage.vault import Vault
from deepseek_trainer.tasks.images.batch import ImageBatch, collate
from deepseek_trainer.tasks.images.loss import ImageLoss, logits
from deepseek_trainer.tasks.images.models import base_model, scratch_model, taught
from deepseek_trainer.tasks.images.normalisation import Normalisation
from deepseek_trainer.tasks.images.preparation import dtype_of, read_classes
from deepseek_trainer.tasks.task import Ask, Assessment, Json, Task, Usage


class ImageTask(Task[ImageBatch]):
    """A residual network or a Vision Transformer."""

    unit: ClassVar = "images"
    rows_are_sorted: ClassVar = True  # by class, where each has a folder

    def __init__(self, config: TrainingConfig, paths: Paths, vault: Vault, directory: Path) -> None:
        self._config, self._paths, self._vault, self._directory = config, paths, vault, directory

    @cached_property
    def classes(self) -> tuple[str, ...]:
        return read_classes(self._directory, self._vault)

    @cached_property
    def normalisation(self) -> Normalisation:
        """The base model's own, or from -1 to 1."""
        if self._config.model.base is None:
            return Normalisation.plain(self._images.channels)
        return Normalisation.of_base(self._base, self._vault, self._images.channels)

    @property
    def usage(self) -> Usage:
        images = self._images.model_dump(mode="json", by_alias=True, exclude_none=True)
        return Usage(
            pipeline="image-classification",
            auto_class="AutoModelForImageClassification",
            limits=("It names one of its classes for every picture, also for one that shows none of them.",),
            settings={f"images.{name}": value for name, value in images.items()},
            loss_unit="image",
        )

    def dtype(self, facts: Json) -> np.dtype[np.void]:
        return dtype_of(facts)

    def collate(self, rows: RowArray, draws: Draws | None = None) -> ImageBatch:
        return collate(rows, draws, self._images.augmentation)

    def model(self) -> PreTrainedModel:
        vision, seed = self._config.model.vision, self._config.optimization.seed
        if vision is not None:
            return scratch_model(vision, self._images, self.classes, seed).train()
        return base_model(self._base, self._vault, self.classes, seed).train()

    def loss(self, model: nn.Module, autocast: torch.autocast, optimization: OptimizationSpec) -> Loss[ImageBatch]:
        return ImageLoss(model, autocast, optimization, self.normalisation)

    def assess(self, ask: Ask) -> Assessment:
        """It classifies the held-out pictures that the loss is measured on."""
        rows = ask.rows.sample(self._config.evaluation.max_rows).tolist()
        truth = [self.classes[number] for number in ask.rows.read(rows)["label"]]
        scores = ask.over(rows, ask.batch_size, partial(self._scores, ask.rows))
        found = classification(truth, scores, self.classes)
        ask.event("classification", **{name: found[name] for name in HEADLINES if name in found})
        return Assessment({"classification": found})

    def companions(self, model: PreTrainedModel, dtype: str) -> dict[str, bytes]:
        """config.json and preprocessor_config.json."""
        base = None if self._config.model.base is None else prepared_settings(self._base, self._vault)
        return {
            "config.json": config_json(model, base, dtype, self._config.export.dtype, taught(base or {}, self.classes)),
            PREPROCESSOR: self.normalisation.preprocessor(self._images),
        }

    @property
    def _images(self) -> ImagesSpec:
        assert self._config.data.images is not None, "the spec asks for images with format Images"
        return self._config.data.images

    @property
    def _base(self) -> Path:
        return prepared_model(self._config, self._paths, self._vault)

    def _scores(self, rows: Rows[ImageBatch], model: nn.Module, mine: Sequence[int]) -> list[list[float]]:
        """Log-probability of each class, for each of the rows."""
        if not mine:
            return []
        with answering(model):
            logits_BK, _ = logits(model, rows.batch(mine), self.normalisation)
            scores: list[list[float]] = log_softmax(logits_BK.double(), dim=1).tolist()
            return scores
