"""The optimizers, their parameter groups, and their state by parameter name."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from deepseek_trainer.contract.optimization import OptimizationSpec, Optimizer
from deepseek_trainer.model.loading import trainable_parameters
from deepseek_trainer.training.moments import kept_by

BETAS = (0.9, 0.95)


def optimizers(model: nn.Module, optimization: OptimizationSpec) -> list[torch.optim.Optimizer]:
    """The optimizers that together have each trainable parameter once."""
    trainable = trainable_parameters(model)
    if optimization.optimizer is not Optimizer.MUON:
        return [_adamw(trainable, optimization)]
    inside = _matrices_inside(model)
    rest = [p for p in trainable if p not in inside]
    made: list[torch.optim.Optimizer] = [_adamw(rest, optimization)] if rest else []
    return [_muon([*inside], optimization), *made] if inside else made


def _adamw(parameters: Sequence[nn.Parameter], optimization: OptimizationSpec) -> torch.optim.Optimizer:
    """AdamW, with weight decay on matrices, embeddings among them, but not on vectors: biases and norms."""
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optimization.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    kinds: dict[str, Any] = {"lr": optimization.learning_rate or 0.0, "betas": BETAS}  # each step brings its own rate
    groups = [g for g in groups if g["params"]]
    if optimization.optimizer is Optimizer.ADAMW_8BIT:
        from bitsandbytes.optim import AdamW8bit  # noqa: PLC0415 a second of import that few jobs need

        made: torch.optim.Optimizer = AdamW8bit(groups, **kinds)
        return made
    return torch.optim.AdamW(groups, fused=any(p.is_cuda for p in parameters), **kinds)


def _muon(matrices: Sequence[nn.Parameter], optimization: OptimizationSpec) -> torch.optim.Optimizer:
    """https://kellerjordan.github.io/posts/muon; its steps are scaled to be as long as AdamW's (arXiv:2502.16982)."""
    return torch.optim.Muon(
        matrices,
        lr=optimization.learning_rate or 0.0,
        weight_decay=optimization.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )


def _matrices_inside(model: nn.Module) -> dict[nn.Parameter, None]:
    """The trainable matrices of linear layers, in order.  The head and embeddings are no maps between layers."""
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    linear = {name: m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    inside = [w for name, w in linear.items() if not name.endswith("lm_head") and w not in embeddings]
    return {w: None for w in inside if isinstance(w, nn.Parameter) and w.requires_grad}


def state_by_name(
    weights: Mapping[str, nn.Parameter], parts: Sequence[torch.optim.Optimizer]
) -> dict[str, dict[str, Any]]:
    """{parameter name: {exp_avg, exp_avg_sq, step}}, independent of the order of groups."""
    return {
        name: dict(optimizer.state[parameter])
        for name, parameter in weights.items()
        for optimizer in parts
        if parameter in optimizer.state
    }


def load_state_by_name(
    weights: Mapping[str, nn.Parameter],
    parts: Sequence[torch.optim.Optimizer],
    state: Mapping[str, Mapping[str, Any]],
) -> None:
    """Give the optimizers a copy of `state`.  torch puts it where it belongs: only a fused one counts steps on the GPU.

    Raises ConfigError if `state` comes from an optimizer from which these cannot go on.
    """
    names = {parameter: name for name, parameter in weights.items()}
    for optimizer in parts:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        by_index = {
            i: {
                key: _copied(value, key, parameter)
                for key, value in kept_by(optimizer, state[names[parameter]]).items()
            }
            for i, parameter in enumerate(parameters)
            if names[parameter] in state
        }
        optimizer.load_state_dict({"state": by_index, "param_groups": optimizer.state_dict()["param_groups"]})


def _copied(value: Any, key: str, parameter: Tensor) -> Any:
    if not isinstance(value, Tensor):
        return value
    if key == "step":
        return value.clone()
    value = value.to(parameter.device, copy=True)
    if not isinstance(parameter, DTensor) or isinstance(value, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None).clone()
