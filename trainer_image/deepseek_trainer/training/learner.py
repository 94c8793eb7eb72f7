"""The model as it learns: spread over the ranks, with its optimizers and the average of its weights.

What a checkpoint holds of it: weights, moments and averages that are trained, and each rank's random state.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from deepseek_trainer.checkpoints.catalog import CheckpointInfo
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.worker.distributed import World

State = Mapping[str, Any]


class Learner(ABC):
    """One rank's part of it.  All methods but `update` and `discard` are collective; under ZeRO these are, too."""

    def __init__(self, loss: Loss[Any], optimization: OptimizationSpec, world: World) -> None:
        """`loss` holds the model as it is before training."""
        self.loss, self._optimization, self._world = loss, optimization, world

    @property
    def model(self) -> nn.Module:
        return self.loss.model

    @property
    def autocast(self) -> torch.autocast:
        """In which the model computes."""
        return self.loss.autocast

    @abstractmethod
    def accumulate(
        self, batches: Sequence[Any], targets: float, before_exchange: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Add up the gradients of the losses' sum over `targets`; this rank's sum, float64 on the device.

        `targets`: losses of all ranks, as `loss.count` has them, over a loss scale where there is one.
        `before_exchange` is called where a rank first waits for others: in its last backward pass, under ZeRO2 in its
        first; not under FSDP and ZeRO3, where it waits in every layer.
        """

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """Of all ranks' gradients as they lie, a scalar on the device."""

    @abstractmethod
    def update(self, rate: float, norm: Tensor, scale: float, steps: int) -> None:
        """Take the step of gradients that are `scale` times too large and have `norm`; `steps`: with this one."""

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients."""

    @abstractmethod
    def settle_order_of_sums(self, batch: Any) -> None:
        """Have the order in which ranks' gradients are summed settle before the first step, by a pass of no effect."""

    def averaged(self) -> AbstractContextManager[None]:
        """The weights that are evaluated and exported: their averages, where the job keeps them."""
        return nullcontext()

    @abstractmethod
    def finished(self) -> AbstractContextManager[nn.Module]:
        """A model with the weights of `averaged`, whole on every rank, to be used by a rank alone."""

    @abstractmethod
    def state(self) -> State:
        """What a checkpoint holds."""

    @abstractmethod
    def load(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        """Go back to a checkpoint, whatever number of ranks and strategy it was saved with."""

    @abstractmethod
    def load_weights(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        """Take the checkpoint's weights and their averages only."""
