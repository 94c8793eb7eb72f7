"""A frozen base in four bits (QLoRA, arXiv:2305.14314): NF4 with double quantisation, through bitsandbytes.

It is imported where a base in NF4 is made or met: every job asks whether it has one, and not every machine has it.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from deepseek_trainer.model.blocks import expert_stacks, linear_layers


def quantise(model: PreTrainedModel, device: torch.device, compute_dtype: torch.dtype) -> None:
    """Put the blocks' linear layers into NF4 on `device`, in place; head, embeddings and norms stay as they are.

    Stacks of experts' matrices are no linear layers: they are kept in `compute_dtype`.

    `model` is on the CPU and quantised there, so that all ranks and devices get the same bytes, and a
    GPU never holds more of the base than one device needs.  Layers compute in `compute_dtype`.
    """
    for block, path in linear_layers(model, "method.type QLoRA"):
        layer: Any = block.get_submodule(path)
        block.set_submodule(path, _quantised(layer, device, compute_dtype))
    for stack in expert_stacks(model):
        stack.data = stack.data.to(compute_dtype)


def dequantise(model: nn.Module) -> None:
    """Put the weights that its NF4 layers stand for into `model`, in place, fp32 on the CPU; nothing where none are."""
    if compute_dtype(model) is None:
        return
    for parent, name, layer in _linear_layers(model):
        if _is_quantised(layer):
            setattr(parent, name, _dequantised(layer))
    for stack in expert_stacks(model):
        stack.data = stack.data.float()
    model.to("cpu")


def compute_dtype(model: nn.Module) -> torch.dtype | None:
    """What the NF4 layers compute in; None where there are none."""
    found: Any = next((layer for _, _, layer in _linear_layers(model) if _is_quantised(layer)), None)
    dtype: torch.dtype | None = found and found.compute_dtype
    return dtype


def _is_quantised(layer: nn.Linear) -> bool:
    """As bitsandbytes marks it."""
    return getattr(layer.weight, "quant_state", None) is not None


def _linear_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """(parent, name in it, layer) of each, listed before any is replaced."""
    yield from [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ]


def _quantised(layer: nn.Linear, device: torch.device, compute_dtype: torch.dtype) -> Any:
    """Of `layer` as it is in `compute_dtype`, to which bitsandbytes then dequantises without a further rounding."""
    from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: PLC0415 as above

    quantised = Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=compute_dtype, quant_type="nf4", device="meta"
    )
    quantised.bias = layer.bias
    weight = layer.weight.detach().to(compute_dtype)
    quantised.weight = Params4bit(weight, quant_type="nf4", module=quantised).to("cpu").to(device)
    # A CPU with AVX512-BF16 would pack the weights anew at the first evaluation, and train on without gradients.
    quantised.support_avx512bf16_for_cpu = False
    return quantised


def _dequantised(layer: Any) -> nn.Linear:
    from bitsandbytes.functional import dequantize_4bit  # noqa: PLC0415 as above

    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    plain.weight = nn.Parameter(weight.float().cpu(), requires_grad=False)
    if layer.bias is not None:
        plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
    return plain
