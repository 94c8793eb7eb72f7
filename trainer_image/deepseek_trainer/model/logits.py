"""What a model makes of its head's outputs before they are logits: some families scale them, or bound them."""

from typing import Any, Final, Self

import torch
from torch import Tensor, nn

from deepseek_trainer.base_model.families.family import Logits
from deepseek_trainer.model.blocks import family, head
from deepseek_trainer.model.loading import transformer

PLAIN: Final = Logits()


class Head:
    """The head of a model, which is never called itself: its weights, and what becomes of its outputs."""

    def __init__(self, module: nn.Module, logits: Logits = PLAIN) -> None:
        self._module: Any = module
        self.logits = logits

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        return cls(head(model), family(model).logits(vars(transformer(model).config)))

    @property
    def weight(self) -> Tensor:
        weight: Tensor = self._module.weight
        return weight

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self._module.bias
        return bias

    @property
    def out_features(self) -> int:
        return int(self._module.out_features)


def shaped(outputs: Tensor, how: Logits) -> Tensor:
    """Logits of a head's `outputs`, with gradient."""
    if how.softcap is None:
        return outputs if how.scale == 1 else outputs * how.scale
    return torch.tanh(outputs * (how.scale / how.softcap)) * how.softcap


def slope(logits: Tensor, how: Logits) -> Tensor | float:
    """The derivative of `shaped` where it has made these `logits`."""
    if how.softcap is None:
        return how.scale
    return (1 - (logits / how.softcap).square_()).mul_(how.scale)
