"""What a task learns by: the loss of a batch, as the learner and the evaluation use it."""

from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from deepseek_trainer.data.batch import Batch
from deepseek_trainer.model.dropout import rows_drawn
from deepseek_trainer.model.routing import Routing

B = TypeVar("B", bound=Batch)


class Loss(nn.Module, Generic[B]):
    """A model and its loss as one module, so that whoever spreads it over ranks sees every forward pass.

    `measures` names what an evaluation sums up beside the loss.  `frozen` hold models (`.model`) that the loss asks and
    nobody trains.  They are no submodules, so that neither DDP nor a checkpoint nor an export knows of them.
    """

    measures: tuple[str, ...] = ()
    frozen: tuple[Any, ...] = ()
    routing: Routing | None = None  # of a model with experts
    uncalled: tuple[nn.Module, ...] = ()  # modules of the model whose weights the loss uses without calling them

    def __init__(self, model: nn.Module, autocast: torch.autocast) -> None:
        super().__init__()
        self.model, self.autocast = model, autocast
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        # DDP does not broadcast what is named here: these are the same on all ranks anyway.
        self._ddp_params_and_buffers_to_ignore = frozen + [name for name, _ in self.named_buffers()]

    def begin(self, batches: Sequence[B]) -> None:
        """See all micro-batches that this rank has in a step, before its first forward pass.

        This is for losses that are no sum over rows, such as a contrastive one.
        """

    def count(self, batch: B) -> int:
        """How many losses `summed` sums up."""
        raise NotImplementedError

    def figures(self, loss: float, means: Mapping[str, float]) -> Mapping[str, float | None]:  # noqa: ARG002
        """What an evaluation reports beside the mean `loss`, from the means of `measures`."""
        return means

    def forward(self, batch: B) -> Tensor:
        """`summed`, with dropout as the rows of the batch have it."""
        with rows_drawn(batch.numbers):
            return self.summed(batch)

    def summed(self, batch: B) -> Tensor:
        """The sum of the losses; in evaluation a vector of it and the sums of `measures`."""
        raise NotImplementedError
