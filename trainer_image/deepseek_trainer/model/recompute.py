"""Memory for time: activations that the backward pass computes again."""

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from deepseek_trainer.contract.optimization import Recompute
from deepseek_trainer.model.blocks import blocks
from deepseek_trainer.model.dropout import as_drawn

_ATEN: Final = torch.ops.aten
KEPT: Final = frozenset(
    {
        _ATEN.mm.default,
        _ATEN.addmm.default,
        _ATEN.bmm.default,
        _ATEN._scaled_dot_product_flash_attention.default,
        _ATEN._scaled_dot_product_flash_attention_for_cpu.default,
        _ATEN._scaled_dot_product_efficient_attention.default,
        _ATEN._scaled_dot_product_cudnn_attention.default,
    }
)


def recompute_activations(model: nn.Module, recompute: Recompute) -> None:
    """Have `model`'s blocks keep less between the passes; nothing else changes, dropout neither."""
    if recompute is Recompute.NONE:
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if recompute is Recompute.SELECTIVE:
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _policy)
    for block in blocks(model):
        # `forward`, for whoever shards a block hooks into its calls, and they shall not be made again.
        block.forward = partial(_forward, block, block.forward, options)


def _forward(
    block: nn.Module, forward: Callable[..., Any], options: dict[str, Any], *inputs: Any, **settings: Any
) -> Any:
    if not block.training:
        return forward(*inputs, **settings)
    return checkpoint(as_drawn(forward), *inputs, **options, **settings)


def _policy(_: Any, operator: Any, *__: Any, **___: Any) -> CheckpointPolicy:
    """Matrix products and attention are worth keeping; what lies between them is cheap to compute again."""
    return CheckpointPolicy.MUST_SAVE if operator in KEPT else CheckpointPolicy.PREFER_RECOMPUTE
