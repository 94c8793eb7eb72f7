"""AdamW, its parameter groups, and its state by parameter name."""

from collections.abc import Mapping

import torch
from torch import nn

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model import trainable_parameters

BETAS = (0.9, 0.95)


def adamw(model: nn.Module, optimization: OptimizationSpec) -> torch.optim.AdamW:
    """Decay on matrices, embeddings among them; biases and norms have no direction to shrink along."""
    trainable = trainable_parameters(model)
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
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Mapping[str, torch.Tensor]]
) -> None:
    """Give the optimizer a copy of `state`; torch knows where: a fused one, unlike others, counts steps on the GPU."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    index = {parameter: i for i, parameter in enumerate(parameters)}
    by_index = {
        index[parameter]: {
            key: value.clone() if key == "step" else value.to(parameter.device, copy=True)
            for key, value in state[name].items()
        }
        for name, parameter in model.named_parameters()
        if name in state
    }
    optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})
