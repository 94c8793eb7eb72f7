"""Packed rows as tensors.

Shapes: B rows in a micro-batch, T = data.sequenceLength tokens in a row.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from deepseek_trainer.data.batch import Tensors
from deepseek_trainer.data.draws import Draws, Numbers, RowArray
from deepseek_trainer.tasks.language.packing import IGNORED, unpacked


@dataclass(frozen=True, slots=True)
class TokenBatch(Tensors):
    """All tensors are int64 of shape BT, given on the CPU.

    `targets_BT[b, t]` is the token after `tokens_BT[b, t]` in the same document, or -100 where nothing is learned.
    `position_ids_BT` start at 0 with each document of a row, and `document_ids_BT` count its documents.  Padding at a
    row's end is one more document.

    The other fields follow from these.  They are computed with the batch, for a GPU in the loader's thread: a forward
    pass that computed them would wait for the device.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    position_ids_BT: Tensor
    document_ids_BT: Tensor
    numbers: Numbers | None = None  # of the rows, for dropout, if they are trained on
    learned_N: Tensor = field(init=False)  # places of the learned positions in the flattened batch
    learned_targets_N: Tensor = field(init=False)
    is_token_BT: Tensor = field(init=False)  # bool: not padding
    num_targets: int = field(init=False)  # learned positions, N
    size: int = field(init=False)  # tokens, padding left out

    def __post_init__(self) -> None:
        is_learned_BT = self.targets_BT != IGNORED
        learned_N = is_learned_BT.flatten().nonzero().squeeze(1)
        self._set("learned_N", learned_N)
        self._set("learned_targets_N", self.targets_BT.flatten()[learned_N])
        self._set("num_targets", len(learned_N))
        self._set("is_token_BT", is_token_BT := self._are_tokens(is_learned_BT))
        self._set("size", int(is_token_BT.sum()))

    def _are_tokens(self, is_learned_BT: Tensor) -> Tensor:
        """All but a last document of which nothing is learned: every other one has learned tokens."""
        in_last_BT = self.document_ids_BT == self.document_ids_BT[:, -1:]
        is_padded_B1 = ~(is_learned_BT & in_last_BT).any(1, keepdim=True)
        return ~(in_last_BT & is_padded_B1)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def collate(rows: RowArray, draws: Draws | None = None) -> TokenBatch:
    """The batch of packed rows."""
    parts = unpacked(rows)
    return TokenBatch(
        torch.from_numpy(parts.tokens_BT),
        torch.from_numpy(parts.targets_BT),
        torch.from_numpy(parts.position_ids_BT),
        torch.from_numpy(parts.document_ids_BT),
        None if draws is None else draws.numbers,
    )
