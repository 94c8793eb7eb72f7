"""Puts a model into another mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def answering(model: nn.Module) -> Iterator[None]:
    """Inside of it, the model is in evaluation mode, and no gradients are computed."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():  # not inference_mode: DDP and checkpoints would trip over its tensors
            yield
    finally:
        model.train(was_training)
