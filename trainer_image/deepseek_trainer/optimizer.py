"""AdamW, its parameter groups, and its state by parameter name."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from deepseek_trainer.contract.config import OptimizationSpec

BETAS = (0.9, 0.95)


def adamw(model: nn.Module, optimization: OptimizationSpec) -> torch.optim.AdamW:
    """Decay on matrices only: biases and norms have no direction to shrink along."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": optimization.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    fused = any(p.is_cuda for p in trainable)
    return torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=optimization.learning_rate, betas=BETAS, fused=fused
    )


def state_by_name(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, torch.Tensor]]:
    """{parameter name: {exp_avg, exp_avg_sq, step}}, independent of the order of groups."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in model.named_parameters()
        if parameter in optimizer.state
    }


def load_state_by_name(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, Any]]
) -> None:
    for name, parameter in model.named_parameters():
        if name in state:
            # The step counter stays where the optimizer keeps it, the moments go to the parameter's device.
            optimizer.state[parameter] = {
                key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
                for key, value in state[name].items()
            }
