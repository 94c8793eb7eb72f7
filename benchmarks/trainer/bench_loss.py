"""What the loss costs: `python benchmarks/trainer/bench_loss.py`, two minutes on a quiet machine.

First, of a small model forward and backward, logits of the learned positions against logits of all.  Then, of a head
alone, our cross entropy against torch's on an FP32 copy of logits in parts that the backward pass makes again, once
there are several.  Contestants take turns on the same input, so that a busy machine slows both alike; seconds are of
the process's CPU time, medians.  Memory: what the peak rose by.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.contract.optimization import LOGITS_BYTES
from deepseek_trainer.model.attention import block_causal_mask
from deepseek_trainer.model.loading import scratch_model
from deepseek_trainer.model.logits import Head
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import causal_loss, head_loss
from deepseek_trainer.tasks.language.packing import IGNORED

ROUNDS = 5
ROWS, LENGTH = 2, 256
SMALL = Architecture(hidden_size=576, num_layers=4, num_heads=9, intermediate_size=1536, vocab_size=49152)

Loss = Callable[[], Tensor]


def batch(learned: float) -> TokenBatch:
    """Two rows of which a share `learned` is learned."""
    tokens_BT = torch.randint(SMALL.vocab_size, (ROWS, LENGTH))
    targets_BT = torch.where(torch.rand(ROWS, LENGTH) < learned, tokens_BT.roll(-1, 1), IGNORED)
    positions_BT = torch.arange(LENGTH).expand(ROWS, LENGTH)
    return TokenBatch(tokens_BT, targets_BT, positions_BT, torch.zeros_like(tokens_BT))


def full_loss(model: PreTrainedModel, batch: TokenBatch) -> Tensor:
    mask = block_causal_mask(batch.document_ids_BT)
    logits = model(input_ids=batch.tokens_BT, position_ids=batch.position_ids_BT, attention_mask=mask).logits
    return cross_entropy(logits.flatten(0, 1).float(), batch.targets_BT.flatten(), reduction="sum")


def made_again(head: nn.Linear, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """The loss by torch, in parts of as many positions as ours."""

    def part(hidden_nD: Tensor, targets_n: Tensor) -> Tensor:
        return cross_entropy(linear(hidden_nD, head.weight).float(), targets_n, reduction="sum")

    rows = LOGITS_BYTES // (4 * head.out_features)
    parts = [*zip(hidden_ND.split(rows), targets_N.split(rows), strict=True)]
    if len(parts) == 1:
        return part(*parts[0])
    return torch.stack([checkpoint(part, *each, use_reentrant=False) for each in parts]).sum()


def seconds(loss: Loss, model: nn.Module) -> float:
    started = time.process_time()
    loss().backward()
    elapsed = time.process_time() - started
    model.zero_grad()
    return elapsed


def medians(one: Loss, other: Loss, model: nn.Module) -> list[float]:
    rounds = [(seconds(one, model), seconds(other, model)) for _ in range(ROUNDS)]
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def peak_mib(loss: Loss, model: nn.Module) -> float:
    """What forward and backward pass add to the memory of this process at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is now
    before = _status("VmHWM")
    loss().backward()
    model.zero_grad()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """[KiB]"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def of_learned() -> None:
    model = scratch_model(SMALL, LENGTH, seed=0)
    print(f"{'learned':>8} {'all logits':>12} {'learned only':>13} {'ratio':>6}   [s]")
    for share in (1.0, 0.5, 0.25, 0.1):
        rows = batch(share)
        full, ours = medians(lambda: full_loss(model, rows), lambda: causal_loss(model, rows)[0], model)  # noqa: B023
        print(f"{share:>8.0%} {full:>12.2f} {ours:>13.2f} {full / ours:>6.2f}", flush=True)


def of_head() -> None:
    print(
        f"\n{'positions':>9} {'weight':>8} {'torch':>8} {'ours':>8} {'ratio':>6}   [s] {'torch':>8} {'ours':>8}   [MiB]"
    )
    for count in (512, 2048):
        for is_trained in (True, False):
            head = nn.Linear(SMALL.hidden_size, SMALL.vocab_size, bias=False).requires_grad_(is_trained)
            hidden_ND = torch.randn(count, SMALL.hidden_size, requires_grad=True)
            targets_N = torch.randint(SMALL.vocab_size, (count,))
            losses: tuple[Loss, Loss] = (
                lambda: made_again(head, hidden_ND, targets_N),  # noqa: B023
                lambda: head_loss(Head(head), hidden_ND, targets_N),  # noqa: B023
            )
            torchs, ours = medians(*losses, head)
            peaks = [peak_mib(loss, head) for loss in losses]
            weight, ratio = "trained" if is_trained else "frozen", torchs / ours
            print(f"{count:>9} {weight:>8} {torchs:>8.2f} {ours:>8.2f} {ratio:>6.2f}", end=" " * 6)
            print(f"{peaks[0]:>8.0f} {peaks[1]:>8.0f}", flush=True)


if __name__ == "__main__":
    of_head()
    of_learned()
