"""What the training loop and the loader ask of a batch, whatever is in it."""

from typing import Protocol, Self

import torch

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
