"""Converts the moments in a checkpoint, which another optimizer may have saved, for the job's own optimizer.

AdamW keeps them in 32 bits.  bitsandbytes' AdamW8bit keeps 8 bits and a scale for each block, but 32 for a small
parameter.
"""

from collections.abc import Mapping
from typing import Any, Final

import torch

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.optimization import Optimizer

Moments = Mapping[str, Any]

_BLOCK: Final = 256  # numbers with one scale, in bitsandbytes' optimizers
_KEYS: Final = {"exp_avg": Optimizer.ADAMW, "state1": Optimizer.ADAMW_8BIT, "momentum_buffer": Optimizer.MUON}


def kept_by(optimizer: torch.optim.Optimizer, moments: Moments) -> Moments:
    """`moments` as `optimizer` keeps them.  Raises ConfigError if it cannot use them."""
    wanted = Optimizer(type(optimizer).__name__)
    saved = next((kind for key, kind in _KEYS.items() if key in moments), wanted)
    match saved, wanted:
        case Optimizer.ADAMW, Optimizer.ADAMW_8BIT:
            return _in_8_bits(moments, optimizer)
        case Optimizer.ADAMW_8BIT, Optimizer.ADAMW:
            return _in_32_bits(moments)
    if saved is not wanted:
        raise ConfigError(
            f"optimization.optimizer={wanted.value}: the checkpoint has the moments of {saved.value}, "
            f"from which {wanted.value} cannot go on",
            hint=f"set optimization.optimizer: {saved.value}, or start over with checkpoint.resumeFrom: None",
        )
    return moments


def _in_8_bits(moments: Moments, optimizer: Any) -> Moments:
    """As AdamW8bit would have rounded them after a step of its own."""
    from bitsandbytes.functional import quantize_blockwise  # noqa: PLC0415 a second of import that few jobs need

    made: dict[str, Any] = {"step": int(moments["step"])}
    for i, key, levels in ((1, "exp_avg", "dynamic"), (2, "exp_avg_sq", "udynamic")):
        made[f"state{i}"] = moment = moments[key]
        if moment.numel() >= optimizer.args.min_8bit_size:
            qmap = optimizer.name2qmap[levels]
            made[f"state{i}"], rounded = quantize_blockwise(moment, qmap, blocksize=_BLOCK)
            made |= {f"qmap{i}": qmap, f"absmax{i}": rounded.absmax}
    return made


def _in_32_bits(moments: Moments) -> Moments:
    from bitsandbytes.functional import dequantize_blockwise  # noqa: PLC0415

    made: dict[str, Any] = {"step": torch.tensor(float(moments["step"]))}
    for i, key in ((1, "exp_avg"), (2, "exp_avg_sq")):
        made[key] = moment = moments[f"state{i}"]
        if moment.dtype is torch.uint8:
            scales, levels = moments[f"absmax{i}"], moments[f"qmap{i}"]
            made[key] = dequantize_blockwise(moment, absmax=scales, code=levels, blocksize=_BLOCK)
    return made
