"""Memory and FLOPs of models with experts and with shared layers, against what torch keeps and counts."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from deepseek_trainer.base_model.families import read_dimensions, scratch_dimensions
from deepseek_trainer.budget.estimate import Setup, memory
from deepseek_trainer.budget.perf import flops_per_token
from deepseek_trainer.contract.method import LoraSpec, MethodSpec
from deepseek_trainer.contract.model import Architecture
from deepseek_trainer.model.adapters import with_adapters
from deepseek_trainer.model.blocks import expert_stacks
from deepseek_trainer.model.loading import count_parameters, scratch_model
from deepseek_trainer.model.method import trainable
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import causal_loss
from support.builders.experts import KINDS, a_mixture
from support.builders.model import a_batch

ROWS, LENGTH = 3, 40
SETUP = Setup(ROWS, LENGTH, lora=None, is_bf16=False, is_cuda=False, ranks=1, is_asynchronous=True)
LORA = LoraSpec(rank=4, dropout=0, target_modules=("o_proj", "experts.gate_up_proj", "experts.down_proj"))
WIDE = {"hidden_size": 64, "moe_intermediate_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}


def learned_everywhere() -> TokenBatch:
    batch = a_batch(ROWS, LENGTH)
    return replace(batch, targets_BT=batch.tokens_BT.roll(-1, 1))


def kept_bytes(model: torch.nn.Module, *, is_bf16: bool) -> int:
    """What autograd keeps for the backward pass of one micro-batch, each tensor's memory once, weights left out."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        causal_loss(model, learned_everywhere())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("lora", [None, LoraSpec(rank=4, dropout=0)])
@pytest.mark.parametrize("kind", KINDS)
def test_activations_are_about_what_autograd_keeps(kind, lora, is_bf16):
    model = a_mixture(kind, **WIDE).train()
    found = memory(read_dimensions(model.config.to_dict()), replace(SETUP, lora=lora, is_bf16=is_bf16))
    model = with_adapters(model, lora, seed=0).train() if lora else model
    of_logits = (10 if is_bf16 else 8) * ROWS * LENGTH * model.config.vocab_size
    expected = found.activations + found.logits - of_logits
    assert kept_bytes(model, is_bf16=is_bf16) == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_and_gradients_are_those_of_all_experts(kind):
    model = a_mixture(kind).train()
    causal_loss(model, learned_everywhere())[0].backward()
    found = memory(read_dimensions(model.config.to_dict()), SETUP)
    assert sum(p.nbytes for p in model.parameters()) == found.weights
    assert sum(p.grad.nbytes for p in model.parameters()) == found.gradients


@pytest.mark.parametrize("is_bf16", [False, True])
def test_under_qlora_experts_take_what_is_computed_in(is_bf16):
    shape = {"kv_lora_rank": 64, "q_lora_rank": 64, "v_head_dim": 16, "hidden_size": 64, "moe_intermediate_size": 64}
    method, dtype = MethodSpec(type="QLoRA", lora=LORA), torch.bfloat16 if is_bf16 else torch.float32
    plain = a_mixture("deepseek_v3", **shape)
    found = memory(read_dimensions(plain.config.to_dict()), replace(SETUP, lora=LORA, method=method, is_bf16=is_bf16))
    model = trainable(plain, method, 0, torch.device("cpu"), dtype)
    assert sum(p.nbytes for p in model.parameters()) == pytest.approx(found.weights, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_flops_of_a_token_are_those_that_torch_counts_with_the_experts_that_it_uses(kind):
    model = a_mixture(kind, **WIDE).train()
    model.set_experts_implementation("eager")  # whose products torch's counter knows
    dimensions = read_dimensions(model.config.to_dict())
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, LENGTH, dtype=torch.int64)).logits.sum().backward()
    assert counter.get_total_flops() / (2 * LENGTH) == pytest.approx(flops_per_token(dimensions, LENGTH), rel=0.05)


def test_active_adapters_of_experts_are_those_of_a_token():
    dimensions = read_dimensions(a_mixture("deepseek_v3").config.to_dict())
    spec = LORA.model_copy(update={"target_modules": ("experts.down_proj",)})
    assert dimensions.adapters(spec) == 2 * dimensions.active_adapters(spec) == 4 * 4 * (16 + 32)


def test_layers_that_share_weights_count_once_in_memory_and_each_in_flops():
    shape = {"hidden_size": 32, "num_layers": 4, "num_heads": 4, "intermediate_size": 64, "vocab_size": 512}
    shared, plain = (Architecture(family=family, **shape) for family in ("ALBERT", "Llama"))
    found, own = scratch_dimensions(shared), scratch_dimensions(plain)
    model = scratch_model(shared, LENGTH, seed=0)
    assert found.parameters == count_parameters(model).total
    assert own.parameters == count_parameters(scratch_model(plain, LENGTH, seed=0)).total
    assert found.active == own.active == own.parameters
    assert flops_per_token(found, LENGTH) == flops_per_token(own, LENGTH)
    assert memory(found, SETUP).weights == sum(p.nbytes for p in model.parameters())
    assert expert_stacks(model) == []
