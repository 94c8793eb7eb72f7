"""How the experts of a mixture compute: all at once, in the dtype of autocast.

transformers multiplies the tokens of all experts by their stacked matrices in one grouped product, which autocast does
not know: it would compute in the dtype of the weights, FP32.
"""

from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

_STACKS: Final = ("gate_up_proj", "down_proj")
_NAME: Final = "grouped_mm_by_autocast"


class _Cast:
    """An experts' module whose stacks have another dtype."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._module, self._dtype = module, dtype

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._module, name)
        return found.to(self._dtype) if name in _STACKS else found


def _computed(module: Any, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    device, experts, wide = hidden.device.type, module, hidden.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        experts, hidden = _Cast(module, dtype), hidden.to(dtype)
    computed: Tensor = grouped_mm_experts_forward(experts, hidden, chosen, weights)
    return computed.to(wide)


def compute_by_autocast(model: PreTrainedModel) -> None:
    """Have the experts of `model` compute so; nothing changes in a model without any."""
    if model.config._experts_implementation == "grouped_mm":
        model.set_experts_implementation(_NAME)


ALL_EXPERTS_FUNCTIONS.register(_NAME, _computed)
