"""Direct Preference Optimization (arXiv:2305.18290): the chosen of two answers becomes likelier, the rejected less.

A row is a pair: its document 0 is the prompt with the chosen answer, document 1 the prompt with the rejected one.
The policy is the model that is trained, and the reference is the model before training: the model without its adapters
or, if all weights are trained, a frozen copy.  What counts is how much likelier the policy makes an answer than the
reference does.  The reference never comes from a checkpoint, so that a resumed run has that of the first attempt.

Shapes: B pairs in a micro-batch, N learned positions.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from deepseek_trainer.contract.optimization import LOGITS_BYTES, OptimizationSpec
from deepseek_trainer.model.loading import transformer
from deepseek_trainer.model.modes import answering
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import TokenLoss, by_row, learned, token_losses


class Frozen(nn.Module):
    """`log_odds` of a frozen copy of a model."""

    def __init__(self, model: nn.Module, logits_bytes: int) -> None:
        super().__init__()
        self._logits_bytes = logits_bytes
        self.model = copy.deepcopy(model).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, batch: TokenBatch) -> Tensor:
        return log_odds(self.model, batch, logits_bytes=self._logits_bytes)


class PairLoss(TokenLoss):
    """The sum of the losses of a batch's pairs; in evaluation a vector of it and the sums of `measures`."""

    measures = ("rewardAccuracy", "rewardMargin")

    def __init__(self, model: nn.Module, autocast: torch.autocast, optimization: OptimizationSpec, beta: float) -> None:
        super().__init__(model, autocast, optimization)
        self._beta = beta
        self.frozen = () if isinstance(model, PeftModel) else (Frozen(model, optimization.logits_bytes),)

    def count(self, batch: TokenBatch) -> int:
        return len(batch.tokens_BT)

    def summed(self, batch: TokenBatch) -> Tensor:
        with self.autocast:
            batch = batch.to(transformer(self.model).device)  # once for policy and reference
            # The policy comes first: peft freezes adapters while they are off, and FSDP keeps what it first gathers.
            policy_B = log_odds(self.model, batch, self._decoder, self._logits_bytes)
            margins_B = self._beta * (policy_B - self._reference(batch))
        if self.model.training:
            return pair_losses(margins_B, self._smoothing).sum()
        return torch.stack([pair_losses(margins_B).sum(), preferred(margins_B).sum(), margins_B.sum()])

    def _reference(self, batch: TokenBatch) -> Tensor:
        if self.frozen:
            odds_B: Tensor = self.frozen[0](batch)
            return odds_B
        return without_adapters(self.model, batch, self._logits_bytes)


def without_adapters(model: nn.Module, batch: TokenBatch, logits_bytes: int = LOGITS_BYTES) -> Tensor:
    """`log_odds` of the base model, without dropout and gradient."""
    assert isinstance(model, PeftModel)
    with answering(model), model.disable_adapter():
        return log_odds(model, batch, logits_bytes=logits_bytes)


def log_odds(
    model: nn.Module,
    batch: TokenBatch,
    decoder: Callable[..., Any] | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> Tensor:
    """log p(chosen answer | prompt) - log p(rejected answer | prompt) of each pair [nats, float64 of shape B]."""
    head, hidden_ND, there = learned(model, batch, decoder)
    losses_N = token_losses(head, hidden_ND, there.learned_targets_N, logits_bytes)
    is_rejected_N = there.document_ids_BT.flatten()[there.learned_N] == 1
    signs_N = torch.where(is_rejected_N, 1.0, -1.0).to(losses_N)  # a loss is a negative log-probability
    return by_row(signs_N * losses_N, there)


def pair_losses(margins_B: Tensor, smoothing: float = 0.0) -> Tensor:
    """-log sigmoid of each reward margin; `smoothing`: the share of pairs that are taken to be in the wrong order."""
    return -(1 - smoothing) * logsigmoid(margins_B) - smoothing * logsigmoid(-margins_B)


def preferred(margins_B: Tensor) -> Tensor:
    """1 for each pair whose chosen answer has the higher reward, 0 if the rejected one has it, a half if neither."""
    return (margins_B.sign() + 1) / 2
