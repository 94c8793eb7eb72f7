"""Layers that share the weights of one, as ALBERT's do (arXiv:1909.11942)."""

from torch import nn
from transformers import PreTrainedModel


def share_layers(model: PreTrainedModel) -> None:
    """Give all layers of a decoder the modules of the first; only what a layer knows of its place stays its own."""
    first, *others = model.get_decoder().layers
    for layer in others:
        _share(layer, first)


def _share(layer: nn.Module, first: nn.Module) -> None:
    for name, child in first.named_children():
        if hasattr(child, "layer_idx"):  # by which attention finds its part of a cache
            _share(getattr(layer, name), child)
        else:
            setattr(layer, name, child)


def are_shared(blocks: list[nn.Module]) -> bool:
    """Whether blocks have weights in common: then they are spread over ranks as one."""
    seen = [{id(weight) for weight in block.parameters()} for block in blocks]
    return len(seen) > 1 and bool(seen[0] & seen[1])
