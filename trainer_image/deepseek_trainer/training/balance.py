"""Keeps the load of experts even without a loss for it (arXiv:2412.19437, section 2.1.2).

Such a router chooses experts by their scores plus a bias, which no gradient reaches.  After each step the bias of an
expert that got more tokens than an even share falls, and that of one that got fewer rises.  It is state of the training
like a weight: a checkpoint holds it, and an export, too.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from deepseek_trainer.model.blocks import family
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.model.routing import Routing

SPEED: Final = 0.001  # by which a bias moves in a step: the paper's gamma


class Balance:
    """The biases of a model's routers that are trained; those of frozen routers stay, as their weights do."""

    def __init__(self, loss: Loss[Any]) -> None:
        self._routing = loss.routing
        moved = family(loss.model).moved if loss.routing else ()
        self._biases = dict(_biases(loss.routing, moved)) if loss.routing else {}

    @torch.no_grad()
    def step(self) -> None:
        """Move the biases by all ranks' load since the last step.  Collective, if there are any."""
        if self._routing is None or not self._biases:
            return
        loads = torch.cat([self._routing.loads[number].to(bias.device) for number, bias in self._biases.items()])
        dist.all_reduce(loads)
        parts = torch.split(loads, [len(bias) for bias in self._biases.values()])
        for load, bias in zip(parts, self._biases.values(), strict=True):
            bias.add_((load.mean() - load).sign().to(bias), alpha=SPEED)

    def forget(self) -> None:
        """Count the load from now on."""
        if self._routing is not None:
            self._routing.forget()


def _biases(routing: Routing, moved: tuple[str, ...]) -> Iterator[tuple[int, Tensor]]:
    """(number of the router, bias) of each router that is trained and has one of the buffers `moved`."""
    for number, router in enumerate(routing.routers):
        if router.weight.requires_grad:
            yield from ((number, bias) for name, bias in router.named_buffers() if name in moved)
