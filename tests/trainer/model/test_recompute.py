"""What is computed again is what was computed before; less is kept in between."""

import copy
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.contract.optimization import OptimizationSpec, Precision, Recompute
from deepseek_trainer.model.dropout import drop_out
from deepseek_trainer.model.loading import scratch_model
from deepseek_trainer.model.logits import Head
from deepseek_trainer.model.precision import autocast
from deepseek_trainer.model.recompute import recompute_activations
from deepseek_trainer.tasks.language import loss as language_loss
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import CausalLoss, causal_loss, head_loss
from support.builders.loop import ALONE

SMALL = Architecture(hidden_size=32, num_layers=3, num_heads=4, intermediate_size=64, vocab_size=300)


def batch() -> TokenBatch:
    tokens = torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(24).expand_as(tokens)
    return TokenBatch(tokens, tokens.roll(-1, 1), positions, torch.zeros_like(tokens))


def kept_bytes(whole: nn.Module, optimization: OptimizationSpec) -> tuple[int, Tensor]:
    """Bytes of all that autograd keeps for the backward pass, and the gradients, end to end."""
    of_batch = CausalLoss(whole.train(), autocast(Precision.FP32, ALONE.device), optimization)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = of_batch(replace(batch(), numbers=np.arange(2, dtype=np.uint64)))
    loss.backward()
    return sum(kept.values()), torch.cat([p.grad.flatten() for p in whole.parameters()])


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_gradients_are_the_same_to_the_last_bit_and_less_is_kept_the_more_is_recomputed(rate: float):
    model = scratch_model(SMALL, 24, seed=0)
    found = {}
    for recompute in Recompute:
        other = copy.deepcopy(model)
        drop_out(other, rate)
        recompute_activations(other, recompute)
        found[recompute] = kept_bytes(other, OptimizationSpec())
    assert all(torch.equal(grads, found[Recompute.NONE][1]) for _, grads in found.values())
    assert found[Recompute.FULL][0] < found[Recompute.NONE][0] / 2


class Counted(TorchDispatchMode):
    """Counts the operators that run in its block."""

    def __init__(self) -> None:
        super().__init__()
        self.runs: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.runs[operator.name()] += 1
        return operator(*args, **(kwargs or {}))


def runs_going_back(recompute: Recompute) -> tuple[int, int, int]:
    """Matrix products, attentions and activations of SMALL's backward pass."""
    model = scratch_model(SMALL, 24, seed=0).train()
    recompute_activations(model, recompute)
    loss = causal_loss(model, batch())[0]
    with Counted() as counted:
        loss.backward()
    runs = counted.runs
    attentions = sum(count for name, count in runs.items() if "attention" in name and "backward" not in name)
    return runs["aten::mm"], attentions, runs["aten::silu"]


def test_in_part_only_what_is_cheap_is_computed_again_and_in_full_matrix_products_and_attention_too():
    layers = SMALL.num_layers
    products = 2 * 7 * layers  # for the gradients of inputs and weights; the head's are made with its logits
    assert runs_going_back(Recompute.NONE) == (products, 0, 0)
    assert runs_going_back(Recompute.SELECTIVE) == (products, 0, layers)
    # Not the last product of a layer: no gradient needs what it gives.
    assert runs_going_back(Recompute.FULL) == (products + 6 * layers, layers, layers)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_logits_made_in_parts_give_the_loss_and_gradients_of_all_at_once(smoothing: float):
    torch.manual_seed(0)
    head, hidden, targets = nn.Linear(8, 50), torch.randn(21, 8, requires_grad=True), torch.randint(0, 50, (21,))
    whole = cross_entropy(head(hidden), targets, reduction="sum", label_smoothing=smoothing)
    expected = torch.autograd.grad(whole, [hidden, head.weight])
    parts = head_loss(Head(head), hidden, targets, smoothing, logits_bytes=4 * 50 * 4)  # four rows
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, [hidden, head.weight]), expected)


@pytest.mark.parametrize(("size", "expected"), [(1, 873), (2, 1747)])
def test_a_job_says_how_many_logits_its_loss_makes_at_once(monkeypatch: pytest.MonkeyPatch, size: int, expected: int):
    """Of a vocabulary of 300."""
    found, of_parts = [], language_loss.summed_cross_entropy

    def watched(*tensors: Any, rows: int, **how: Any) -> Tensor:
        found.append(rows)
        return of_parts(*tensors, rows=rows, **how)

    monkeypatch.setattr(language_loss, "summed_cross_entropy", watched)
    kept_bytes(scratch_model(SMALL, 24, seed=0), OptimizationSpec(logits_mebibytes=size))
    assert found == [expected]
