"""Packed rows as batches: what the training loop reads.

Shapes: B rows in a micro-batch, T = data.sequenceLength tokens in a row.
"""

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.base_model.source import prepared_model
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.errors import TryAgainError
from deepseek_trainer.contract.names import ENV_RUN_ID, Paths
from deepseek_trainer.data.classes import equal_slots
from deepseek_trainer.data.order import Order, slots_of
from deepseek_trainer.data.permutation import Indices
from deepseek_trainer.data.pointer import pointed_to
from deepseek_trainer.data.shards import (
    Manifest,
    Prompt,
    RowArray,
    SourceRows,
    SplitCounts,
    read_manifest,
    read_order,
    read_prompts,
    read_rows,
)
from deepseek_trainer.language.packing import IGNORED, unpacked
from deepseek_trainer.language.tokenizer import token_bytes
from deepseek_trainer.language.tokenizer_files import load_tokenizer
from deepseek_trainer.storage.vault import Vault


@dataclass(frozen=True, slots=True)
class Batch:
    """All tensors int64, given on the CPU, of shape BT.

    `targets_BT[b, t]` is the token after `tokens_BT[b, t]` in the same document, or -100 where nothing
    is learned.  `position_ids_BT` start at 0 with each document of a row and `document_ids_BT` count
    them; padding at a row's end is one more document.

    What follows from them is made with the batch, on a GPU by the loader's thread: a pass that had to ask for it
    would wait for the device.
    """

    tokens_BT: Tensor
    targets_BT: Tensor
    position_ids_BT: Tensor
    document_ids_BT: Tensor
    learned_N: Tensor = field(init=False)  # places of the learned positions in the flattened batch
    learned_targets_N: Tensor = field(init=False)
    num_targets: int = field(init=False)  # learned positions, N
    num_tokens: int = field(init=False)  # padding left out

    def __post_init__(self) -> None:
        is_learned_BT = self.targets_BT != IGNORED
        learned_N = is_learned_BT.flatten().nonzero().squeeze(1)
        self._set("learned_N", learned_N)
        self._set("learned_targets_N", self.targets_BT.flatten()[learned_N])
        self._set("num_targets", len(learned_N))
        self._set("num_tokens", self._num_tokens(is_learned_BT))

    def pinned(self) -> Self:
        """A copy in memory that a GPU reads by itself, while the host goes on."""
        return self._with_each(Tensor.pin_memory)

    def to(self, device: torch.device) -> Self:
        """The same there; the host waits for it only where this one is not pinned."""
        return self._with_each(lambda tensor: tensor.to(device, non_blocking=True))

    def _num_tokens(self, is_learned_BT: Tensor) -> int:
        """Only padding is a last document of which nothing is learned."""
        in_last_BT = self.document_ids_BT == self.document_ids_BT[:, -1:]
        is_padded_B = ~(is_learned_BT & in_last_BT).any(1)
        return self.tokens_BT.numel() - int(in_last_BT[is_padded_B].sum())

    def _with_each(self, change: Callable[[Tensor], Tensor]) -> Self:
        made = copy.copy(self)
        for each in fields(self):
            if isinstance(value := getattr(self, each.name), Tensor):
                made._set(each.name, change(value))
        return made

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class Rows:
    """The packed rows of one split."""

    def __init__(self, shards: Sequence[RowArray]) -> None:
        """`shards`: all but the last of one length."""
        self._shards = shards
        self._per_shard = len(shards[0])

    def __len__(self) -> int:
        return self._per_shard * (len(self._shards) - 1) + len(self._shards[-1])

    def batch(self, indices: Sequence[int] | Indices) -> Batch:
        """Rows `indices`, in that order."""
        rows = np.empty(len(indices), self._shards[0].dtype)
        for i, index in enumerate(indices):
            shard, offset = divmod(int(index), self._per_shard)
            rows[i] = self._shards[shard][offset]
        parts = unpacked(rows)
        return Batch(
            torch.from_numpy(parts.tokens_BT),
            torch.from_numpy(parts.targets_BT),
            torch.from_numpy(parts.position_ids_BT),
            torch.from_numpy(parts.document_ids_BT),
        )


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job's prepared data.  `digest` (64 hex digits) names their content and everything that shaped it.

    Not the order in which they are read, which `order.digest(digest)` names as well.
    """

    train: Rows
    validation: Rows
    tokenizer: PreTrainedTokenizerFast
    digest: str
    prompts: tuple[Prompt, ...]  # at most 1000, in the order of the data; none for Text
    counts: Mapping[str, SplitCounts]  # "train", "validation"
    sources: tuple[SourceRows, ...]  # of a mix, or the classes of balanceBy
    order: Order  # of the train rows

    def token_bytes(self) -> Tensor | None:
        """As `tokenizer.token_bytes`, int64."""
        sizes = token_bytes(self.tokenizer)
        return None if sizes is None else torch.from_numpy(sizes)


def open_prepared(
    config: TrainingConfig, paths: Paths, vault: Vault, environ: Mapping[str, str] = os.environ
) -> Prepared:
    """What this attempt's `prepare` left.

    Raises TryAgainError where it left nothing, IntegrityError where it does not authenticate.
    """
    run_id = environ[ENV_RUN_ID]
    digest = pointed_to(paths, run_id, vault)
    if digest is None:
        raise TryAgainError(
            f"run {run_id} has no prepared data below {paths.prepared}", hint="run deepseek_trainer.prepare first"
        )
    directory = paths.prepared / digest
    manifest = read_manifest(directory, vault)
    tokenizer_home = directory if config.model.base is None else prepared_model(config, paths)
    return Prepared(
        train=Rows(read_rows(manifest, directory, "train", vault)),
        validation=Rows(read_rows(manifest, directory, "validation", vault)),
        tokenizer=load_tokenizer(tokenizer_home, vault),
        digest=digest,
        prompts=read_prompts(directory, vault),
        counts=manifest.counts,
        sources=manifest.sources,
        order=_order(config.data, manifest, directory, vault),
    )


def _order(data: DataSpec, manifest: Manifest, directory: Path, vault: Vault) -> Order:
    """How the job wants its train rows read: sources by weight, classes alike, or easy rows first."""
    rows = tuple(source.counts.rows for source in manifest.sources) or (manifest.counts["train"].rows,)
    order = Order(rows)
    if data.sources:
        weights, minimum = [s.weight for s in data.sources], [s.minimum_slots for s in data.sources]
        order = replace(order, slots=slots_of(weights, minimum))
    if data.balance_by is not None:
        length = (
            1 if data.format is DataFormat.PREFERENCE else data.sequence_length
        )  # no pair is repeated to fill a row
        order = replace(order, slots=equal_slots([s.counts for s in manifest.sources], length))
    if data.curriculum is not None:
        table = read_order(manifest, directory, vault)
        order = replace(order, buckets=data.curriculum.buckets, by_difficulty=table)
    return order
