"""Whether the weights of a base model are numbers."""

import torch
from torch import nn

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import named


def refuse_non_finite(model: nn.Module) -> None:
    """Raise ConfigError, with its name, for the first weight of a base model that holds NaN or infinity."""
    if name := first_non_finite(model):
        raise ConfigError(
            f"the base model's weight {named(name)} is not finite: it holds NaN or infinity",
            hint="training cannot mend it: take another copy or another release of the model",
        )


def first_non_finite(model: nn.Module) -> str | None:
    held = ((name, tensor) for name, tensor in model.named_parameters() if tensor.is_floating_point())
    return next((name for name, tensor in held if not torch.isfinite(tensor).all()), None)
