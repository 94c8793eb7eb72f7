"""A model as the job's method trains it: what is frozen, what is in four bits, what is added."""

import torch
from torch import nn
from transformers import PreTrainedModel

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import MethodSpec, MethodType
from deepseek_trainer.model.adapters import with_adapters
from deepseek_trainer.model.blocks import blocks, embedding, positions
from deepseek_trainer.model.nf4 import quantise


def trainable(
    model: PreTrainedModel, method: MethodSpec, seed: int, device: torch.device, compute_dtype: torch.dtype
) -> nn.Module:
    """`model`, which is on the CPU, on `device` and ready to be trained by `method`, which is settled.

    What is trained requires a gradient, and nothing else.  Raises ConfigError where the model lacks what is asked for.
    """
    if method.type is MethodType.QLORA:
        quantise(model, device, compute_dtype)
    if method.frozen_layers is not None:
        freeze(model, method.frozen_layers)
    placed: nn.Module = model.to(device)
    if method.adapters is None:
        return placed
    adapted: nn.Module = with_adapters(placed, method.adapters, seed)
    return adapted


def freeze(model: PreTrainedModel, count: int) -> None:
    """Keep the embedding, a head that is tied to it, and the first `count` blocks as they are."""
    layers = blocks(model)
    if count >= len(layers):
        raise ConfigError(
            f"method.frozenLayers={count}: the model has {len(layers)} decoder layers, and one at least is trained",
            hint=f"at most {len(layers) - 1}, or train adapters: method.type: LoRA",
        )
    for module in (embedding(model), *positions(model), *layers[:count]):
        module.requires_grad_(False)
