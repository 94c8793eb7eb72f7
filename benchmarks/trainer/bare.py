"""The plainest correct training loop in PyTorch, as a contestant.

Shapes: B documents in a pass, T tokens of the longest, V vocabulary.
"""

from collections.abc import Sequence

import bare_machine  # noqa: F401 first
import numpy as np
import torch
from corpora import PAD, Corpus, Stream
from setting import MAX_NORM, Lap, Setting, adamw, now
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from deepseek_trainer.model.attention import block_causal_mask
from deepseek_trainer.model.loading import trainable_parameters
from deepseek_trainer.tasks.language.packing import IGNORED, Ids


class Bare:
    """A batch padded to its longest document, cross-entropy, backward, clip, step: nothing else, and no wait."""

    def __init__(
        self,
        setting: Setting,
        corpus: Corpus,
        *,
        is_grouped: bool = False,
        dense_mask: bool = False,
        fused: bool | None = None,
    ) -> None:
        """`is_grouped`: a pass is of documents of about one length.  `fused`: AdamW, by default on a GPU."""
        self._setting, self._world, self._device = setting, setting.world, setting.world.device
        self._per_pass, self._dense_mask = setting.documents(corpus), dense_mask
        self._stream = Stream(corpus, self._per_pass if is_grouped else None)
        self.model = setting.model()
        self._optimizer = adamw(self.model, self._device.type == "cuda" if fused is None else fused)
        if setting.compiled:
            self.model.compile(dynamic=False)
        self._forward = self.model if self._world.size == 1 else DistributedDataParallel(self.model)

    def run(self, steps: int) -> Lap:
        tokens, start = 0, now(self._device)
        for _ in range(steps):
            tokens += self._step()
        end = now(self._device)
        return Lap(int(self._world.sum([tokens])[0]), start, end)

    def _step(self) -> int:
        count = self._per_pass * self._setting.passes
        documents = self._stream.take(count * self._world.size)[count * self._world.rank :][:count]
        targets = sum(len(document) - 1 for document in documents)
        for start in range(0, count, self._per_pass):
            self._forward.require_backward_grad_sync = start + self._per_pass == count  # of DDP
            (self._loss(*padded(documents[start : start + self._per_pass])) / targets).backward()
        clip_grad_norm_(trainable_parameters(self.model), MAX_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return sum(map(len, documents))

    def _loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
        tokens_BT = tokens_BT.to(self._device, non_blocking=True)
        targets_BT = targets_BT.to(self._device, non_blocking=True)
        # None is causal: padding is at the end, and no token before it attends to it.
        mask = block_causal_mask(torch.zeros_like(tokens_BT)) if self._dense_mask else None
        with self._setting.autocast:
            logits_BTV = self._forward(input_ids=tokens_BT, attention_mask=mask, use_cache=False).logits
            return cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), reduction="sum")


def padded(documents: Sequence[Ids]) -> tuple[Tensor, Tensor]:
    """tokens_BT, and targets_BT: the token after each."""
    tokens_BT = np.full((len(documents), max(map(len, documents))), PAD, np.int64)
    targets_BT = np.full_like(tokens_BT, IGNORED)
    for i, document in enumerate(documents):
        tokens_BT[i, : len(document)] = document
        targets_BT[i, : len(document) - 1] = document[1:]
    return torch.from_numpy(tokens_BT), torch.from_numpy(targets_BT)


def parting(model: nn.Module, other: nn.Module, start: nn.Module) -> float:
    """How far apart two trainings are, as a share of the way that the second has gone."""
    each = zip(model.parameters(), other.parameters(), start.parameters(), strict=True)
    apart, way = zip(*(((a - b).norm() ** 2, (b - c).norm() ** 2) for a, b, c in each), strict=True)
    return float((sum(apart) / sum(way)) ** 0.5)
