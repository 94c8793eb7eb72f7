"""What the training loop and the loader ask of a batch, whatever is in it."""

from typing import Protocol, Self

import torch


class Batch(Protocol):
    """Some rows of the prepared data as tensors.  Each task has a batch of its own."""

    @property
    def size(self) -> int:
        """How much is in it, in the task's unit (tokens without padding, images): for the speed."""

    def pinned(self) -> Self:
        """A copy in memory that a GPU reads by itself, while the host goes on."""

    def to(self, device: torch.device) -> Self:
        """The same on `device`; the host waits for it only where this one is not pinned."""
