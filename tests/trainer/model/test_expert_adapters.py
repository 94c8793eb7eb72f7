"""LoRA and QLoRA on models with experts and on attention through a latent."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from deepseek_trainer.base_model.families import read_dimensions
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.method import LoraSpec, MethodSpec
from deepseek_trainer.model.adapters import adapter_settings, adapter_state, merged, with_adapters
from deepseek_trainer.model.blocks import expert_stacks
from deepseek_trainer.model.dropout import rows_drawn
from deepseek_trainer.model.loading import count_parameters
from deepseek_trainer.model.method import trainable
from deepseek_trainer.tasks.language.loss import causal_loss
from support.builders.experts import KINDS, a_mixture
from support.builders.model import a_batch

CPU = torch.device("cpu")
LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
STACKS = ("experts.gate_up_proj", "experts.down_proj")


def adapted(kind: str, targets: tuple[str, ...], dropout: float = 0.0) -> PeftModel:
    """Adapters that change the model's answers."""
    model = with_adapters(a_mixture(kind), LoraSpec(rank=2, dropout=dropout, target_modules=targets), seed=0)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.1)
    return model


def targets_of(kind: str) -> list[tuple[str, ...]]:
    known = read_dimensions(a_mixture(kind).config.to_dict()).adaptable
    return [("all-linear",), ("q_proj", "v_proj"), STACKS, known]


CASES = [(kind, targets) for kind in KINDS for targets in targets_of(kind)]


@pytest.mark.parametrize(("kind", "targets"), CASES)
def test_adapters_are_those_that_dimensions_tell_learn_and_merge(kind, targets):
    model, batch = adapted(kind, targets), a_batch()
    spec = LoraSpec(rank=2, target_modules=targets)
    assert count_parameters(model).trainable == read_dimensions(a_mixture(kind).config.to_dict()).adapters(spec) > 0
    names = [name for name, _ in model.named_parameters()]
    causal_loss(model.train(), batch)[0].backward()
    assert [name for name, _ in model.named_parameters()] == names
    assert all(weight.grad.abs().sum() > 0 for weight in model.parameters() if weight.requires_grad)
    assert not any(weight.grad is not None for weight in model.parameters() if not weight.requires_grad)
    with torch.no_grad():
        before, base = model.eval()(batch.tokens_BT).logits, a_mixture(kind)(batch.tokens_BT).logits
        after = merged(model)(batch.tokens_BT).logits
    assert torch.allclose(before, after, atol=1e-3)
    assert not torch.allclose(before, base, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_adapts_queries_and_values_whatever_makes_them(kind):
    model = with_adapters(a_mixture(kind), LoraSpec(), seed=0)
    names = {name.split(".")[-4] for name, weight in model.named_parameters() if weight.requires_grad}
    assert names == ({"q_b_proj", "kv_b_proj"} if kind.startswith("deepseek") else {"q_proj", "v_proj"})


@pytest.mark.parametrize("kind", ["deepseek_v2", "deepseek_v3", "qwen2_moe"])
def test_dropout_of_adapters_on_shared_experts_follows_from_the_rows(kind):
    model, batch = adapted(kind, ("gate_proj", "down_proj"), dropout=0.5), a_batch()
    losses = []
    for numbers in (torch.arange(3), torch.arange(3), torch.arange(3, 6)):
        with rows_drawn(numbers):
            losses.append(float(causal_loss(model.train(), batch)[0].detach()))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("deepseek_v3", LATENT),
        ("deepseek_v3", (*LATENT, *STACKS)),
        ("qwen3_moe", ("q_proj", *STACKS)),
        ("mixtral", STACKS),
    ],
)
def test_plain_peft_loads_an_adapter_of_attention_and_of_experts(tmp_path, kind, targets):
    model, batch = adapted(kind, targets), a_batch()
    save_file(adapter_state(model), tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json_text(adapter_settings(model)))
    again = PeftModel.from_pretrained(a_mixture(kind), str(tmp_path))
    with torch.no_grad():
        assert torch.equal(again.eval()(batch.tokens_BT).logits, model.eval()(batch.tokens_BT).logits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_qlora_keeps_linear_layers_in_four_bits_and_experts_in_what_is_computed(kind, dtype):
    shape = {
        "hidden_size": 64,
        "kv_lora_rank": 64,
        "q_lora_rank": 64,
        "v_head_dim": 16,
        "intermediate_size": 64,
        "moe_intermediate_size": 64,
        "shared_expert_intermediate_size": 64,
    } | ({} if kind.startswith("deepseek") else {"head_dim": 16})
    plain = a_mixture(kind, **shape)
    method = MethodSpec(type="QLoRA", lora=LoraSpec(rank=2, dropout=0, target_modules=("q_proj", "v_proj")))
    model = trainable(plain.train(), method, 0, CPU, dtype)
    assert {stack.dtype for stack in expert_stacks(model)} == {dtype}
    found = read_dimensions(plain.config.to_dict())
    packed = sum(w.numel() for w in model.parameters() if w.dtype is torch.uint8)
    assert 2 * packed == found.in_linear
    with torch.autocast("cpu", dtype, enabled=dtype is torch.bfloat16):
        causal_loss(model, a_batch())[0].backward()
    assert all(w.grad is not None and w.dtype is torch.float32 for w in model.parameters() if w.requires_grad)
    complete = merged(model)
    assert {weight.dtype for weight in complete.parameters()} == {torch.float32}
