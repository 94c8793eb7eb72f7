from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.tasks.language.loss import causal_loss, row_losses
from deepseek_trainer.tasks.language.preference import log_odds
from support.builders.loop import pair_rows
from support.builders.model import a_batch, tiny_model

ARCHITECTURE = Architecture(hidden_size=32, num_layers=2, num_heads=4, intermediate_size=64, vocab_size=300)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_causal_loss_equals_the_loss_over_full_logits(kind):
    model, batch = tiny_model(kind), a_batch()
    loss, num_targets = causal_loss(model, batch)
    logits = model(input_ids=batch.tokens_BT).logits
    expected = cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), ignore_index=-100, reduction="sum")
    assert num_targets == int((batch.targets_BT != -100).sum())
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


def test_causal_loss_gives_the_gradient_of_the_loss_over_full_logits():
    model, batch = tiny_model(), a_batch()
    causal_loss(model, batch)[0].backward()
    ours = model.model.layers[0].self_attn.q_proj.weight.grad.clone()
    model.zero_grad()
    logits = model(input_ids=batch.tokens_BT).logits
    cross_entropy(logits.flatten(0, 1), batch.targets_BT.flatten(), reduction="sum").backward()
    torch.testing.assert_close(ours, model.model.layers[0].self_attn.q_proj.weight.grad, rtol=1e-4, atol=1e-4)


def test_causal_loss_is_zero_when_nothing_is_learned():
    batch = replace(a_batch(), targets_BT=torch.full((3, 16), -100))
    loss, num_targets = causal_loss(tiny_model(), batch)
    assert (float(loss), num_targets) == (0.0, 0)
    loss.backward()  # DDP waits for a gradient of every rank, also of one whose rows teach nothing


def test_causal_loss_is_fp32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = causal_loss(tiny_model(), a_batch())
    assert loss.dtype is torch.float32


class Waits(TorchDispatchMode):
    """What a host that computes on another device would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        is_copied = function is torch.ops.aten._to_copy.default and "device" in kwargs
        if is_copied and kwargs["device"] != args[0].device and not kwargs.get("non_blocking"):
            self.found.append("a copy")
        return function(*args, **kwargs)


@pytest.mark.parametrize("of_batch", [row_losses, log_odds])
def test_a_pass_neither_looks_at_the_data_nor_waits_for_a_copy(of_batch):
    """On a device without data, where nothing can be looked at."""
    model = tiny_model().to("meta")
    with Waits() as waits:
        found = of_batch(model, pair_rows(3).batch(range(3)))
    assert found.device.type == "meta"
    assert waits.found == []
