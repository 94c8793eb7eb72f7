"""Dropout of a decoder: the Llama and Qwen families are built without.

Residual dropout of A. Vaswani et al., Attention Is All You Need, 2017, section 5.4: on the embeddings, and on what
each attention and each feed-forward adds to them.  Attention weights are left alone.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout

from deepseek_trainer.model.blocks import embedding, residual_layers


def drop_out(model: nn.Module, rate: float) -> None:
    """Have `model` zero this share of those elements at random while it trains, and scale up the others."""
    if not rate:
        return
    for module in (embedding(model), *residual_layers(model, "optimization.dropout")):
        module.register_forward_hook(partial(_dropped, rate))


def _dropped(rate: float, module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return dropout(output, rate, module.training)
