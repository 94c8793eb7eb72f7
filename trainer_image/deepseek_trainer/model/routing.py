"""Where a mixture of experts sends its tokens: counted as it happens, and held against an even load.

Shapes: B rows of T positions in a micro-batch, E experts of a router, K of them for each position.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from deepseek_trainer.model.blocks import routers
from deepseek_trainer.model.loading import transformer

_PREFIX: Final = "load/"  # of a measure: load/<router>/<expert>


class _Seen(NamedTuple):
    """What a router gave for one micro-batch."""

    logits: Tensor  # of shape (B x T, E)
    chosen: Tensor  # of shape (B x T, K)


class Routing:
    """The routers of one model; a model without any has a load of nothing."""

    def __init__(self, model: nn.Module) -> None:
        self.routers: list[Any] = [*routers(model)]
        config: Any = transformer(model).config
        asks = self.routers and getattr(config, "output_router_logits", False)
        self.coefficient: float = (getattr(config, "router_aux_loss_coef", 0.0) or 0.0) if asks else 0.0
        self.loads = [torch.zeros(len(each.weight), dtype=torch.float64) for each in self.routers]
        self.measures = tuple(f"{_PREFIX}{i}/{e}" for i, load in enumerate(self.loads) for e in range(len(load)))
        self._seen: dict[int, _Seen] = {}
        self._is_watched = False
        for i, router in enumerate(self.routers):
            router.register_forward_hook(partial(self._watch, i))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside of it, the first pass through each router is remembered; a pass that recompute repeats comes later."""
        self._seen.clear()
        self._is_watched = True
        try:
            yield
        finally:
            self._is_watched = False

    def counted(self, is_token_BT: Tensor) -> list[Tensor]:
        """How many tokens of the last watched micro-batch each expert of each router got, padding left out."""
        counts = [_count(self._seen[i].chosen, is_token_BT, len(load)) for i, load in enumerate(self.loads)]
        self._seen.clear()
        return counts

    def add(self, counts: list[Tensor]) -> None:
        """Take in what `counted` gave for a micro-batch that is trained on."""
        self.loads = [load.to(count.device) + count for load, count in zip(self.loads, counts, strict=True)]

    def forget(self) -> None:
        """Begin a step anew."""
        self.loads = [torch.zeros_like(load) for load in self.loads]

    def auxiliary(self, is_token_BT: Tensor) -> Tensor:
        """The loss that pulls towards an even load (arXiv:2101.03961, equations 4 to 6), of each row, of shape B.

        As transformers computes it, over all routers at once, but of a row instead of a micro-batch: so neither the
        micro-batch nor the number of ranks changes what is learned.
        """
        rows = len(is_token_BT)
        tokens: Any = 0
        chances: Any = 0
        for i in range(len(self.routers)):
            logits, chosen = self._seen[i]
            weight_BT1 = is_token_BT.to(logits.device)[..., None].float()
            share = torch.zeros_like(logits, dtype=torch.float32).scatter_(1, chosen, 1.0)
            tokens = tokens + (share.view(rows, -1, share.shape[1]) * weight_BT1).sum(1)
            chance = logits.float().softmax(1)
            chances = chances + (chance.view(rows, -1, chance.shape[1]) * weight_BT1).sum(1)
        total_B1 = len(self.routers) * is_token_BT.sum(1, keepdim=True).clamp(min=1).to(chances.device)
        loss_B: Tensor = (tokens / total_B1 * (chances / total_B1)).sum(1) * tokens.shape[1]
        return loss_B

    def figures(self, means: Mapping[str, float]) -> dict[str, float | None]:
        """Of an evaluation: the load of the busiest expert, of which an even one is 1, and how many got no token."""
        if not self.routers:
            return {}
        loads = [[means[name] for name in self.measures if name.startswith(f"{_PREFIX}{i}/")] for i in self._numbers]
        return {
            "busiestExpert": max((_unevenness(load) for load in loads), default=math.nan),
            "idleExperts": float(sum(each == 0 for load in loads for each in load)),
        }

    @property
    def _numbers(self) -> range:
        return range(len(self.routers))

    def _watch(self, number: int, _: nn.Module, __: Any, output: Any) -> None:
        if self._is_watched and number not in self._seen:
            logits, _weights, chosen = output
            self._seen[number] = _Seen(logits, chosen.detach())


def _count(chosen: Tensor, is_token_BT: Tensor, experts: int) -> Tensor:
    """Of shape E, float64, which is exact far beyond any load."""
    chosen_NK = chosen[is_token_BT.flatten().to(chosen.device)]
    return torch.bincount(chosen_NK.flatten(), minlength=experts).double()


def _unevenness(load: list[float]) -> float:
    return round(max(load) * len(load) / sum(load), 4) if sum(load) else math.nan
