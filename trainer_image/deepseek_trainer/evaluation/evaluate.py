"""How good a model is on held-out rows: its loss, and what the loss measures beside it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.model.modes import answering

Reduce = Callable[[Sequence[float]], list[float]]  # element-wise sum over all ranks, as `World.sum`


@dataclass(frozen=True, slots=True)
class EvalResult:
    """The mean loss, NaN if nothing is learned, and what the task makes of the means of its measures."""

    loss: float  # [nats] a token, a pair of answers, an image
    figures: Mapping[str, float | None] = field(default_factory=dict)


def evaluate_loss(
    loss: Loss[Any],
    rows: Rows[Any],
    *,
    max_rows: int,
    batch_size: int,
    rank: int,
    world_size: int,
    reduce: Reduce,
    before_batch: Callable[[], None] = lambda: None,
) -> EvalResult:
    """Mean loss over at most `max_rows` rows, each row on exactly one rank.

    Collective.  The result is the same on every rank and, up to rounding, for any number of ranks.  `before_batch` and
    `loss` may be collective too: every rank calls them equally often.  What `before_batch` raises ends the evaluation.
    Leaves the model in the mode it was in.
    """
    chosen = rows.sample(max_rows)
    mine = chosen[rank::world_size].tolist()
    loads = loss.routing.measures if loss.routing else ()
    names = (*loss.measures, *loads)
    sums, losses = torch.zeros(1 + len(names), dtype=torch.float64), 0
    with answering(loss.model):
        for start in range(0, math.ceil(len(chosen) / world_size), batch_size):
            before_batch()
            part = mine[start : start + batch_size]
            batch = rows.batch(part or [0])  # a rank without rows takes part all the same: weights may be sharded
            batch_sums = loss(batch).reshape(-1).cpu()
            if part:
                sums += batch_sums
                losses += loss.count(batch)
    *all_sums, all_losses = reduce([*sums.tolist(), float(losses)])
    mean, *means = (each / all_losses if all_losses else math.nan for each in all_sums)
    found = dict(zip(names, means, strict=True))
    figures = loss.figures(mean, {name: found[name] for name in loss.measures})
    return EvalResult(mean, {**figures, **(loss.routing.figures(found) if loss.routing else {})})
