"""The model as it learns: spread over the ranks, with its optimizers and the average of its weights.

A checkpoint holds its trained weights, their moments and averages, and each rank's random state.
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
from deepseek_trainer.training.balance import Balance
from deepseek_trainer.worker.distributed import World

State = Mapping[str, Any]


class Learner(ABC):
    """One rank's part.  All methods but `update` and `discard` are collective; under ZeRO these are, too."""

    def __init__(self, loss: Loss[Any], optimization: OptimizationSpec, world: World) -> None:
        """`loss` holds the model, not trained yet."""
        self.loss, self._optimization, self._world = loss, optimization, world
        self._balance = Balance(loss)

    @property
    def model(self) -> nn.Module:
        return self.loss.model

    @property
    def autocast(self) -> torch.autocast:
        """The precision in which the model computes."""
        return self.loss.autocast

    @abstractmethod
    def accumulate(
        self, batches: Sequence[Any], targets: float, before_exchange: Callable[[], None] = lambda: None
    ) -> Tensor:
        """Add up the gradients of sum(losses) / `targets`.  Returns this rank's sum of losses, float64 on the device.

        `targets` is the number of losses on all ranks (`loss.count`), divided by the loss scale if there is one.
        `before_exchange` is called when a rank is about to wait for others for the first time: before its last backward
        pass, under ZeRO2 before its first.  Under FSDP and ZeRO3 it is not called: there a rank waits in every layer.
        """

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """The norm of all ranks' gradients as they are, a scalar on the device."""

    @abstractmethod
    def update(self, rate: float, norm: Tensor, scale: float, steps: int) -> None:
        """Take step number `steps`.  The gradients are `scale` times too large and have `norm`."""

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradients."""

    @abstractmethod
    def settle_order_of_sums(self, batch: Any) -> None:
        """Before the first step, settle the order in which ranks' gradients are summed, by a pass without effect."""

    def averaged(self) -> AbstractContextManager[None]:
        """Inside of it, the model has the weights to evaluate and export: their averages, if the job keeps them."""
        return nullcontext()

    @abstractmethod
    def finished(self) -> AbstractContextManager[nn.Module]:
        """A model with the weights of `averaged`, whole on every rank: a rank can use it alone."""

    @abstractmethod
    def state(self) -> State:
        """What a checkpoint holds."""

    @abstractmethod
    def load(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        """Go back to a checkpoint, whatever strategy and number of ranks it was saved with."""

    @abstractmethod
    def load_weights(self, store: CheckpointStore, info: CheckpointInfo) -> None:
        """Take the checkpoint's weights and their averages only."""
