"""Dropout whose masks follow from the rows of a batch and from the place in the model, and from nothing else.

A stream of random numbers would drop other elements after a kill, at another number of ranks, and in micro-batches of
another size.  Here each row has a number of 64 random bits (`data/draws.py`), and a hash of it says what is dropped of
that row: the same for whoever computes it, on a CPU and on a GPU, in a pass and where the backward pass repeats it.

What is dropped is the job's choice: rates that a base model's config.json sets are left out.  By `optimization.dropout`
it is A. Vaswani et al., Attention Is All You Need, 2017, section 5.4: the embeddings, and what each layer adds to the
residual stream.  Attention weights are left alone.

Shapes: B rows in a micro-batch, T positions in a row, D width, W words of 32 bits, each for two elements.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deepseek_trainer.model.blocks import embedded, own_dropout, residual_layers

_PARTS: Final = 1 << 16  # of which a rate is a whole number
_GOLDEN: Final = -0x61C88647  # 2^32 over the golden ratio, as int32: steps that spread evenly


class RowDropout(nn.Module):
    """Zeroes a share of the elements while it trains, and scales up the others; `place` tells it from all others."""

    def __init__(self, rate: float, place: int) -> None:
        super().__init__()
        self.rate, self.place = rate, place

    def forward(self, hidden: Tensor) -> Tensor:
        return dropped(hidden, self.rate, self.place) if self.training and self.rate else hidden

    def extra_repr(self) -> str:
        return f"rate={self.rate}, place={self.place}"


def drop_out(model: nn.Module, rate: float) -> None:
    """Have `model` drop at this rate while it trains, and by nothing that its config.json says."""
    for module, name in own_dropout(model):
        setattr(module, name, 0.0)
    if not rate:
        return
    layers = (embedded(model), *residual_layers(model, "optimization.dropout"))
    for place, layer in enumerate(layers):
        layer.register_forward_hook(partial(_drop_output, rate, place))


def drop_by_row(layers: Iterable[nn.ModuleDict]) -> None:
    """Put a `RowDropout` in the place of each `nn.Dropout` that `layers` hold."""
    for place, held in enumerate(layers):
        for name, child in held.items():
            if isinstance(child, nn.Dropout):
                held[name] = RowDropout(child.p, place)


@contextmanager
def rows_drawn(numbers_B: Tensor | npt.NDArray[np.uint64] | None) -> Iterator[None]:
    """Within, a model that trains is called with the rows of these numbers, 64 bits of each.

    None: the rows have none, and nothing may be dropped.
    """
    with _drawn(None if numbers_B is None else _Draw(torch.as_tensor(numbers_B))):
        yield


def as_drawn(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with the rows of now, whenever it is called: a backward pass repeats it after `rows_drawn` has ended.

    A compiled pass needs nothing of this: there the numbers are an input, which is kept for the backward pass.
    """
    if torch.compiler.is_compiling():
        return function
    draw = _NOW.draw

    def again(*inputs: Any, **settings: Any) -> Any:
        with _drawn(draw):
            return function(*inputs, **settings)

    return again


def dropped(hidden: Tensor, rate: float, place: int) -> Tensor:
    """`hidden`, of shape B ... D, without a share of its elements, the others scaled up so that the mean stays.

    Of the share as it is, `rate` to 1/65536, so that nothing is biased.
    """
    drops = min(round(rate * _PARTS), _PARTS - 1)
    if hidden.ndim == 2 and _NOW.draw is not None and len(hidden) > len(_NOW.draw):  # positions of all rows in a line
        return dropped(hidden.view(len(_NOW.draw), -1, hidden.shape[1]), rate, place).flatten(0, 1)
    is_kept = _uniform(hidden, place) >= drops - _PARTS // 2
    return torch.where(is_kept, hidden * (_PARTS / (_PARTS - drops)), 0)


class _Draw:
    """The numbers of a micro-batch's rows, as two words of 32 bits each."""

    def __init__(self, numbers_B: Tensor) -> None:
        self._low_B, self._high_B = numbers_B.contiguous().view(torch.int32).view(-1, 2).unbind(1)
        self._made: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return len(self._low_B)

    def words(self, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two for each position of each row, int32 of shape BT, the second one odd; made once for all places."""
        if torch.compiler.is_compiling():  # which sees what it makes twice, and may keep nothing here
            return self._words(positions, device)
        key = positions, device
        if key not in self._made:
            self._made[key] = self._words(positions, device)
        return self._made[key]

    def _words(self, positions: int, device: torch.device) -> tuple[Tensor, Tensor]:
        low_B1, high_B1 = (key.to(device)[:, None] for key in (self._low_B, self._high_B))
        steps_T = torch.arange(positions, dtype=torch.int32, device=device) * _GOLDEN
        first_BT = _mixed(_mixed(steps_T + low_B1) + high_B1)
        return first_BT, _mixed(first_BT + low_B1) | 1


class _Now:
    draw: _Draw | None = None


_NOW: Final = _Now()


@contextmanager
def _drawn(draw: _Draw | None) -> Iterator[None]:
    before, _NOW.draw = _NOW.draw, draw
    try:
        yield
    finally:
        _NOW.draw = before


def _uniform(hidden: Tensor, place: int) -> Tensor:
    """Numbers of 16 bits, as int16 of `hidden`'s shape.

    A position's two words make a line over the elements, on which no word comes twice, at no place.  A quadratic
    permutation before and after the upper halves are added to the lower ones leaves nothing of the line.
    """
    draw = _NOW.draw
    if draw is None:
        raise RuntimeError("dropout follows from the rows' numbers: call a model that trains within rows_drawn")
    if len(draw) != len(hidden):
        raise RuntimeError(f"dropout got {len(hidden)} rows and the numbers of {len(draw)}")
    width = hidden.shape[-1]
    first_BT, second_BT = draw.words(math.prod(hidden.shape[1:-1]), hidden.device)
    steps_W = torch.arange((width + 1) // 2, dtype=torch.int32, device=hidden.device) + (place << 16)
    words_BTW = _permuted(first_BT[..., None] + second_BT[..., None] * steps_W)
    words_BTW = _permuted(words_BTW + (words_BTW >> 16))
    return words_BTW.view(torch.int16)[..., :width].reshape(hidden.shape)


def _permuted(words: Tensor) -> Tensor:
    """The permutation of int32 that RC6 is made of (R. Rivest et al., 1998): upper bits depend on all."""
    return words * (2 * words + 1)  # no addcmul: torch.compile makes floats of it


def _mixed(words: Tensor) -> Tensor:
    """A permutation of int32, each bit of which depends on all: lowbias32 of C. Wellons, hash-prospector, 2018."""
    words = (words ^ _shifted(words, 16)) * 0x7FEB352D
    words = (words ^ _shifted(words, 15)) * -0x7B935975
    return words ^ _shifted(words, 16)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return (words >> bits) & ((1 << (32 - bits)) - 1)


def _drop_output(rate: float, place: int, layer: nn.Module, _: Any, output: Tensor) -> Tensor:
    return dropped(output, rate, place) if layer.training else output
