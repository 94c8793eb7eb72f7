"""A moving average of the weights, which is evaluated and exported in their place."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """average = d x average + (1 - d) x weights after each step; of this rank's shards, if weights are sharded.

    d is `decay`, but at most (1 + t) / (10 + t) after t steps, so that the first weights are soon forgotten.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self._weights, self._decay = weights, decay
        self.averages: Mapping[str, Tensor] = {name: p.detach().clone() for name, p in weights.items()}

    def update(self, steps: int) -> None:
        """Take in the weights after `steps` optimizer steps (1 after the first)."""
        decay = min(self._decay, (1 + steps) / (10 + steps))
        averages, weights = [*self.averages.values()], [p.detach() for p in self._weights.values()]
        torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside of it, the model's weights are the averages."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self._weights.items():
            kept = weight.clone()
            weight.copy_(self.averages[name])
            self.averages[name].copy_(kept)
