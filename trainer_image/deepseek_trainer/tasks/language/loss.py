"""Next-token losses of packed rows.

Shapes: B rows in a micro-batch, T tokens in a row, N learned positions of a micro-batch, D width, V vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint

from deepseek_trainer.contract.optimization import LOGITS_BYTES, OptimizationSpec
from deepseek_trainer.model.attention import masks
from deepseek_trainer.model.blocks import head
from deepseek_trainer.model.compiling import compiled
from deepseek_trainer.model.cross_entropy import summed_cross_entropy
from deepseek_trainer.model.loading import transformer
from deepseek_trainer.model.logits import Head, shaped
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.model.routing import Routing
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.packing import IGNORED


class TokenLoss(Loss[TokenBatch]):
    """What losses over learned positions share: the decoder, compiled if the job wants that, and the head."""

    routing: Routing

    def __init__(self, model: nn.Module, autocast: torch.autocast, optimization: OptimizationSpec) -> None:
        super().__init__(model, autocast)
        self._smoothing, self._logits_bytes = optimization.label_smoothing, optimization.logits_bytes
        inner: Any = transformer(model)
        # The model keeps its own, not compiled: it also generates, and each new length would be compiled anew.
        self._decoder = compiled(inner.get_decoder()) if optimization.compile else None
        self.uncalled = (head(model),)
        self.routing = Routing(model)

    def forward(self, batch: TokenBatch) -> Tensor:
        """Also counts the tokens that each expert gets: in training for their balance, else as further measures."""
        with self.routing.watched():
            losses = super().forward(batch)
        if not self.routing.routers:
            return losses
        counts = self.routing.counted(batch.is_token_BT)
        if self.model.training:
            self.routing.add(counts)
            return losses
        return torch.cat([losses.reshape(-1).double().cpu(), *(count.cpu() for count in counts)])


class CausalLoss(TokenLoss):
    """`causal_loss` of the learned tokens; in evaluation also the bytes of the learned text, if they are known."""

    def __init__(
        self,
        model: nn.Module,
        autocast: torch.autocast,
        optimization: OptimizationSpec,
        token_bytes: Tensor | None = None,
    ) -> None:
        """`token_bytes`: what `tokenizer.token_bytes` returns, int64."""
        super().__init__(model, autocast, optimization)
        self._token_bytes = token_bytes
        self.measures = () if token_bytes is None else ("bytes",)

    def count(self, batch: TokenBatch) -> int:
        return batch.num_targets

    def summed(self, batch: TokenBatch) -> Tensor:
        with self.autocast:
            smoothing = self._smoothing if self.model.training else 0.0
            loss = causal_loss(self.model, batch, smoothing, self._decoder, self._logits_bytes)[0]
        if self.model.training and self.routing.coefficient:
            loss = loss + self.routing.coefficient * self._auxiliary(batch).to(loss)
        if self.model.training or self._token_bytes is None:
            return loss
        learned_bytes = self._token_bytes[batch.learned_targets_N.cpu()].sum()
        return torch.stack([loss.double().cpu(), learned_bytes.double()])

    def _auxiliary(self, batch: TokenBatch) -> Tensor:
        """The routers' own loss: the mean over rows weighs each by its learned tokens, as the loss itself does."""
        of_rows_B = self.routing.auxiliary(batch.is_token_BT)
        return (of_rows_B * (batch.targets_BT != IGNORED).sum(1).to(of_rows_B)).sum()

    def figures(self, loss: float, means: Mapping[str, float]) -> dict[str, float | None]:
        """Perplexity, and bits per byte of text: an end of text adds to the loss, but has no bytes."""
        size = means.get("bytes")
        return {"perplexity": perplexity(loss), "bitsPerByte": loss / math.log(2) / size if size else None}


def perplexity(loss: float) -> float | None:
    """None if it is no number that a float can hold."""
    return math.exp(loss) if loss < 700 else None  # exp(710) overflows


def causal_loss(
    model: nn.Module,
    batch: TokenBatch,
    smoothing: float = 0.0,
    decoder: Callable[..., Any] | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> tuple[Tensor, int]:
    """Sum of the next-token losses [nats, fp32 scalar with gradient] and the number of learned positions N.

    Logits are made for the N learned positions only: for instruction data that is a fraction of the B x T x V logits,
    which are most of the memory of a small model.  Divide by the N of all micro-batches and ranks to get a mean that
    does not depend on how rows were dealt out.  `model` may be wrapped by peft.  Tokens of different documents of a row
    do not see each other.  `decoder` is called in place of the model's own.
    """
    head, hidden_ND, there = learned(model, batch, decoder)
    return head_loss(head, hidden_ND, there.learned_targets_N, smoothing, logits_bytes), batch.num_targets


def row_losses(model: nn.Module, batch: TokenBatch) -> Tensor:
    """`causal_loss` of each row by itself [nats, float64 of shape B]."""
    head, hidden_ND, there = learned(model, batch)
    return by_row(token_losses(head, hidden_ND, there.learned_targets_N), there)


def by_row(values_N: Tensor, batch: TokenBatch) -> Tensor:
    """Sums over the learned positions of each row, of shape B."""
    rows_N = batch.learned_N // batch.targets_BT.shape[1]
    return values_N.new_zeros(len(batch.targets_BT)).index_add(0, rows_N, values_N)


def learned(
    model: nn.Module, batch: TokenBatch, decoder: Callable[..., Any] | None = None
) -> tuple[Head, Tensor, TokenBatch]:
    """The head, its input at the learned positions, and `batch` on the model's device."""
    inner = transformer(model)
    there = batch.to(inner.device)
    decode = inner.get_decoder() if decoder is None else decoder
    hidden_BTD = decode(
        input_ids=there.tokens_BT,
        position_ids=there.position_ids_BT,
        attention_mask=masks(model, there.document_ids_BT),
        use_cache=False,
    ).last_hidden_state
    return Head.of(model), hidden_BTD.flatten(0, 1)[there.learned_N], there


def head_loss(
    head: Head, hidden_ND: Tensor, targets_N: Tensor, smoothing: float = 0.0, logits_bytes: int = LOGITS_BYTES
) -> Tensor:
    """The sum of the cross entropies of `head`'s logits, fp32."""
    # `head` itself is not called: ZeRO-3 would wait for the other ranks at each call, and they may have fewer parts.
    rows = _rows(head, logits_bytes)
    return summed_cross_entropy(
        hidden_ND, head.weight, head.bias, targets_N, smoothing=smoothing, rows=rows, logits=head.logits
    )


def token_losses(head: Head, hidden_ND: Tensor, targets_N: Tensor, logits_bytes: int = LOGITS_BYTES) -> Tensor:
    """The cross entropy of each position, made in fp32, as float64 of shape N so that sums of many lose nothing.

    How much each counts is known only in the backward pass.  If there are several parts, it makes their logits again.
    """
    weight, bias = head.weight, head.bias  # as above

    def part(hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        logits_nV = shaped(linear(hidden_nD, weight, bias), head.logits)
        return cross_entropy(logits_nV.float(), targets_n, reduction="none")

    rows = _rows(head, logits_bytes)
    parts = list(zip(torch.split(hidden_ND, rows), torch.split(targets_N, rows), strict=True))
    made = part if len(parts) == 1 else partial(checkpoint, part, use_reentrant=False)
    return torch.cat([made(*each) for each in parts]).double()


def _rows(head: Head, logits_bytes: int) -> int:
    """How many positions a part has: the logits of all at once would be most of the memory."""
    return max(1, logits_bytes // (4 * head.out_features))
