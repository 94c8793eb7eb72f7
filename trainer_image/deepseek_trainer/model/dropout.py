"""Dropout of a decoder: the Llama and Qwen families are built without.

Residual dropout of A. Vaswani et al., Attention Is All You Need, 2017, section 5.4: on the embeddings, and on what
each attention and each feed-forward adds to them.  Attention weights are left alone.
"""

from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import dropout

from deepseek_trainer.model.loading import transformer


def drop_out(model: nn.Module, rate: float) -> None:
    """Have `model` zero this share of those elements at random while it trains, and scale up the others."""
    if not rate:
        return
    decoder: Any = transformer(model).get_decoder()
    added = [module for layer in decoder.layers for module in (layer.self_attn.o_proj, layer.mlp.down_proj)]
    for module in (decoder.embed_tokens, *added):
        module.register_forward_hook(partial(_dropped, rate))


def _dropped(rate: float, module: nn.Module, _: Any, output: Tensor) -> Tensor:
    return dropout(output, rate, module.training)
