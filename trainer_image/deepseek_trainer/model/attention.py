"""The masks of packed rows: what attention sees of its own document, which may be a window.

Shapes: B rows in a micro-batch, T tokens in a row.
"""

import torch
from torch import Tensor, nn

from deepseek_trainer.base_model.families.family import ALIKE, Windows
from deepseek_trainer.model.blocks import family
from deepseek_trainer.model.loading import transformer


def masks(model: nn.Module, document_ids_BT: Tensor) -> Tensor | dict[str, Tensor]:
    """What the model's decoder takes as `attention_mask`: one for all layers, or one for each kind of layer."""
    inner = transformer(model)
    made = masks_of(document_ids_BT, family(model).windows(vars(inner.config)))
    if inner.config._attn_implementation == "eager":
        made = {kind: _added(mask) for kind, mask in made.items()}
    return made.get(ALIKE, made)


def masks_of(document_ids_BT: Tensor, windows: Windows) -> dict[str, Tensor]:
    """`block_causal_mask` for each window.  One that is as long as a row leaves nothing out."""
    length = document_ids_BT.shape[1]
    whole = block_causal_mask(document_ids_BT)
    return {
        kind: whole if window is None or window >= length else whole & ~whole.new_ones(length, length).tril(-window)
        for kind, window in windows.items()
    }


def block_causal_mask(document_ids_BT: Tensor) -> Tensor:
    """Whether position t may attend to s, bool of shape (B, 1, T, T): s is not later, and in the same document.

    The form that scaled_dot_product_attention and transformers (>= 5.15, `masking_utils`: a 4-D mask
    is used as it is) expect.  B x T x T bytes.
    """
    same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    return same_BTT.tril()[:, None]


def _added(mask: Tensor) -> Tensor:
    """A mask as numbers that are added to scores, for attention that is not computed in one go."""
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, lowest)
