"""Logits of the learned positions against logits of all: `python benchmarks/trainer/bench_loss.py`, about 1 minute.

Both in turn on the same model and batch, so that a busy machine slows both alike.
"""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.dataset import Batch
from deepseek_trainer.model import causal_loss, scratch_model
from deepseek_trainer.packing import IGNORED, block_causal_mask

ROUNDS = 5
ROWS, LENGTH = 2, 256
SMALL = Architecture(hidden_size=576, num_layers=4, num_heads=9, intermediate_size=1536, vocab_size=49152)


def batch(learned: float) -> Batch:
    """Two rows of which a share `learned` is learned."""
    tokens_BT = torch.randint(SMALL.vocab_size, (ROWS, LENGTH))
    targets_BT = torch.where(torch.rand(ROWS, LENGTH) < learned, tokens_BT.roll(-1, 1), IGNORED)
    positions_BT = torch.arange(LENGTH).expand(ROWS, LENGTH)
    return Batch(tokens_BT, targets_BT, positions_BT, torch.zeros_like(tokens_BT))


def full_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    mask = block_causal_mask(batch.document_ids_BT)
    logits = model(input_ids=batch.tokens_BT, position_ids=batch.position_ids_BT, attention_mask=mask).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch.targets_BT.flatten(), reduction="sum")


def seconds(loss: Callable[[], Tensor], model: PreTrainedModel) -> float:
    started = time.perf_counter()
    loss().backward()
    elapsed = time.perf_counter() - started
    model.zero_grad()
    return elapsed


def main() -> None:
    model = scratch_model(SMALL, LENGTH, seed=0)
    print(f"{'learned':>8} {'all logits':>12} {'learned only':>13} {'ratio':>6}   [s, forward and backward, median]")
    for share in (1.0, 0.5, 0.25, 0.1):
        rows = batch(share)
        rounds = [
            (seconds(lambda: full_loss(model, rows), model), seconds(lambda: causal_loss(model, rows)[0], model))  # noqa: B023
            for _ in range(ROUNDS)
        ]
        full, ours = (statistics.median(column) for column in zip(*rounds, strict=True))
        print(f"{share:>8.0%} {full:>12.2f} {ours:>13.2f} {full / ours:>6.2f}")


if __name__ == "__main__":
    main()
