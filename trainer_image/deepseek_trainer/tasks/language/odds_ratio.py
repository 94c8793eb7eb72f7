"""Odds Ratio Preference Optimization (arXiv:2403.07691): answers are learned while rejected ones lose odds, in one.

A row is a pair, as of `preference`, and there is no reference model.  How likely an answer is, is the geometric mean of
its tokens' probabilities, so that its length plays no part; its odds are p / (1 - p).

Shapes: B pairs in a micro-batch, N learned positions.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import TokenLoss, learned, token_losses
from deepseek_trainer.tasks.language.preference import preferred

# Losses are made in fp32, in which a certain token has a loss of 0, and an answer of such ones infinite odds.
_LEAST_LOSS: Final = torch.finfo(torch.float32).eps


class OddsRatioLoss(TokenLoss):
    """The sum of the losses of a batch's pairs; in evaluation a vector of it and the sums of `measures`."""

    measures = ("rewardAccuracy", "rewardMargin")

    def __init__(self, model: nn.Module, autocast: torch.autocast, optimization: OptimizationSpec, weight: float):
        """`weight`: the paper's lambda."""
        super().__init__(model, autocast, optimization)
        self._weight = weight

    def count(self, batch: TokenBatch) -> int:
        return len(batch.tokens_BT)

    def summed(self, batch: TokenBatch) -> Tensor:
        with self.autocast:
            head, hidden_ND, there = learned(self.model, batch, self._decoder)
            losses_N = token_losses(head, hidden_ND, there.learned_targets_N, self._logits_bytes)
            chosen_B, rejected_B = by_token(losses_N, there)
        ratios_B = log_odds(chosen_B) - log_odds(rejected_B)
        losses_B: Tensor = chosen_B - self._weight * logsigmoid(ratios_B)
        if self.model.training:
            return losses_B.sum()
        return torch.stack([losses_B.sum(), preferred(ratios_B).sum(), ratios_B.sum()])


def by_token(losses_N: Tensor, batch: TokenBatch) -> Tensor:
    """The mean loss of a token of each chosen and each rejected answer, of shape (2, B)."""
    rows, length = batch.targets_BT.shape
    sides_N = batch.document_ids_BT.flatten()[batch.learned_N]
    places_N = sides_N * rows + batch.learned_N // length
    sums, counts = (
        values_N.new_zeros(2 * rows).index_add(0, places_N, values_N)
        for values_N in (losses_N, torch.ones_like(losses_N))
    )
    return (sums / counts).view(2, rows)


def log_odds(losses_B: Tensor) -> Tensor:
    """log(p / (1 - p)) of answers with these losses, -log p."""
    losses_B = losses_B.clamp(min=_LEAST_LOSS)
    complements_B: Tensor = -torch.expm1(-losses_B)
    return -losses_B - complements_B.log()
