"""What the training loop and the loader ask of a batch, whatever is in it."""

import copy
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from deepseek_trainer.data.draws import Numbers


class Batch(Protocol):
    """Some rows of the prepared data as tensors.  Each task has a batch of its own."""

    @property
    def size(self) -> int:
        """How much it holds, in the task's unit: tokens without padding, or images.  The speed is measured by it."""

    @property
    def numbers(self) -> Numbers | None:
        """64 random bits for each row, for dropout; None where nothing is trained."""

    def pinned(self) -> Self:
        """A copy in page-locked memory, which a GPU reads while the host goes on."""

    def to(self, device: torch.device) -> Self:
        """The same batch on `device`.  The host waits for the copy unless this batch is pinned."""


class Tensors:
    """What a frozen dataclass of tensors and other facts needs to be a `Batch`."""

    __slots__ = ()

    def pinned(self) -> Self:
        return self._with_each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        made: Any = copy.copy(self)
        for each in fields(made):
            if isinstance(value := getattr(self, each.name), Tensor):
                object.__setattr__(made, each.name, change(value))
        return made  # type: ignore[no-any-return]
