"""Cross entropy of a head's logits, which are never all in memory, and never made twice.

The forward pass makes the logits of some positions at a time, and at once their share of the gradients.  As the loss is
a sum, the backward pass only has to scale the gradients (Liger Kernel, arXiv:2410.10989, section 3.2).

Shapes: N positions, n of a part, D width, V vocabulary.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, log_softmax

from deepseek_trainer.base_model.families.family import Logits
from deepseek_trainer.model.logits import PLAIN, shaped, slope

# FP16's gradients of logits, of which the largest is 1, are kept so many times too large: small ones would vanish.
_FP16_SCALE: Final = 256


def summed_cross_entropy(
    hidden_ND: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets_N: Tensor,
    *,
    smoothing: float,
    rows: int,
    logits: Logits = PLAIN,
) -> Tensor:
    """The summed cross entropy, a scalar.  The logits of `rows` positions at a time are made, in autocast's dtype.

    Sums are in FP32.  Autograd refuses a second backward pass through the same graph.
    """
    how = _How(smoothing, rows, torch.is_grad_enabled(), logits)
    total: Tensor = _Sum.apply(how, targets_N, hidden_ND, weight, bias)
    return total


class _How(NamedTuple):
    smoothing: float
    rows: int
    learns: bool  # whether there can be a backward pass
    logits: Logits  # what the model makes of the outputs


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: _How, targets_N: Tensor, *sources: Tensor | None) -> Tensor:
        gradients = [
            torch.zeros_like(source) if how.learns and is_needed and source is not None else None
            for source, is_needed in zip(sources, ctx.needs_input_grad[2:], strict=True)
        ]
        with _compute_dtype(targets_N.device.type, sources) as (hidden_ND, weight, bias):
            losses = []
            for start in range(0, max(1, len(targets_N)), how.rows):
                part = slice(start, start + how.rows)
                logits_nV = shaped(linear(hidden_ND[part], weight, bias), how.logits)
                losses.append(_loss(logits_nV, targets_N[part], how))
                _add(gradients, part, logits_nV, hidden_ND[part], weight)
        ctx.save_for_backward(*gradients)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight, bias = ctx.saved_tensors
        # The weight's gradient is scaled in place: it is large.
        scaled = weight if weight is None else weight.mul_(scale)
        return None, None, _times(hidden_ND, scale), scaled, _times(bias, scale)


@contextmanager
def _compute_dtype(kind: str, tensors: Sequence[Tensor | None]) -> Iterator[list[Any]]:
    """`tensors` in the dtype that autocast would give them, with autocast off inside of it."""
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    with torch.autocast(kind, enabled=False):
        yield [tensor if tensor is None or dtype is None else tensor.to(dtype) for tensor in tensors]


def _loss(logits_nV: Tensor, targets_n: Tensor, how: _How) -> Tensor:
    """The summed loss.  If it is learned from, `logits_nV` become the gradient of the head's outputs.

    That is `_scale` times too large.
    """
    chances_nV = log_softmax(logits_nV, -1, dtype=torch.promote_types(logits_nV.dtype, torch.float32))
    right_n1 = chances_nV.gather(1, targets_n[:, None])
    loss = (how.smoothing - 1) * right_n1.sum()
    if how.smoothing:
        loss -= how.smoothing * chances_nV.mean(1).sum()
    if how.learns:
        scale, share = _scale(logits_nV), how.smoothing / logits_nV.shape[1]
        steepness = slope(logits_nV, how.logits)
        # The target's gradient is a difference in FP32: near 1 a probability is rounded by more than is left to learn.
        rest_n1 = scale * (right_n1.expm1() + how.smoothing - share)
        if scale != 1:
            chances_nV += math.log(scale)
        torch.exp(chances_nV, out=logits_nV)
        if how.smoothing:
            logits_nV -= scale * share
        logits_nV.scatter_(1, targets_n[:, None], rest_n1.to(logits_nV.dtype))
        if how.logits != PLAIN:
            logits_nV *= steepness
    return loss


def _add(gradients: list[Tensor | None], part: slice, of_logits_nV: Tensor, hidden_nD: Tensor, weight: Tensor) -> None:
    """Add the share of a part to the gradients of hidden states, weight and bias, of each that is wanted."""
    of_hidden_ND, of_weight, of_bias = gradients
    scale = _scale(of_logits_nV)
    if of_hidden_ND is not None:
        of_hidden_ND[part] = of_logits_nV @ weight
        if scale != 1:
            of_hidden_ND[part] /= scale
    if of_weight is not None:
        if of_weight.dtype is hidden_nD.dtype:
            of_weight.addmm_(of_logits_nV.T, hidden_nD)
        else:
            of_weight += of_logits_nV.T @ (hidden_nD / scale)
    if of_bias is not None:
        of_bias += of_logits_nV.sum(0, dtype=of_bias.dtype) / scale


def _scale(logits: Tensor) -> int:
    return _FP16_SCALE if logits.dtype is torch.float16 else 1


def _times(gradient: Tensor | None, scale: Tensor) -> Tensor | None:
    return gradient if gradient is None else gradient * scale
