"""The loss of an image classifier.

Shapes: B images in a micro-batch, C channels, H rows and W columns of pixels, K classes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.tasks.images.augment import augmented, normalised
from deepseek_trainer.tasks.images.batch import ImageBatch
from deepseek_trainer.tasks.images.normalisation import Normalisation


class ImageLoss(Loss[ImageBatch]):
    """Cross entropy [nats] of each image; while training against smoothed and mixed targets."""

    measures = ("right",)

    def __init__(
        self, model: nn.Module, autocast: torch.autocast, optimization: OptimizationSpec, normalisation: Normalisation
    ) -> None:
        super().__init__(model, autocast)
        self._smoothing, self._normalisation = optimization.label_smoothing, normalisation

    def count(self, batch: ImageBatch) -> int:
        return batch.size

    def summed(self, batch: ImageBatch) -> Tensor:
        with self.autocast:
            logits_BK, there = logits(self.model, batch, self._normalisation)
        if self.model.training:
            return _soft_losses(logits_BK, there, self._smoothing).sum()
        losses_B = cross_entropy(logits_BK, there.labels_N, reduction="none").double()
        return torch.stack([losses_B.sum(), (logits_BK.argmax(1) == there.labels_N).double().sum()])

    def figures(self, loss: float, means: Mapping[str, float]) -> Mapping[str, float | None]:  # noqa: ARG002
        return {"accuracy": means["right"]}


def logits(model: Any, batch: ImageBatch, normalisation: Normalisation) -> tuple[Tensor, ImageBatch]:
    """float32 of shape BK, of the images as chance changes them; and `batch` on their device."""
    there = batch.to(model.device)
    return model(pixel_values=normalised(augmented(there), normalisation)).logits.float(), there


def _soft_losses(logits_BK: Tensor, batch: ImageBatch, smoothing: float) -> Tensor:
    """float64 of shape B.  What is mixed of two images has the classes of both, each by its share."""

    def against(labels_B: Tensor) -> Tensor:
        return cross_entropy(logits_BK, labels_B, reduction="none", label_smoothing=smoothing).double()

    own_B = against(batch.labels_N[: batch.size])
    if batch.share_B is None:
        return own_B
    return own_B * batch.share_B + against(batch.labels_N[batch.size :]) * (1 - batch.share_B)
