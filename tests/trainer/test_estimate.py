"""Memory of a rank before anything is loaded, against what torch keeps."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepseek_trainer.adapters import linear_names, with_adapters
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import LoraSpec
from deepseek_trainer.dimensions import LINEAR, Dimensions
from deepseek_trainer.estimate import Memory, Setup, largest_rows, memory, needed, refuse_certain
from deepseek_trainer.model import causal_loss, count_parameters
from deepseek_trainer.optimizer import adamw
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.dataset import Batch
from model_builders import a_batch, tiny_model

ROWS, LENGTH = 3, 40
SETUP = Setup(ROWS, LENGTH, lora=None, is_bf16=False, is_cuda=False, ranks=1, is_asynchronous=True)
SMALL = Dimensions(
    hidden=576, layers=30, heads=9, key_value_heads=3, head_dim=64, intermediate=1536, vocab=49152, tied=True
)
SHAPES = {
    "llama": ("llama", {}),
    "no groups": ("llama", {"num_key_value_heads": 4}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "wide heads": ("llama", {"head_dim": 24}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3, biased": ("qwen3", {"attention_bias": True}),
}


def shaped(name: str, **changes):
    kind, shape = SHAPES[name]
    return tiny_model(kind, **shape | changes)


def dimensions(model) -> Dimensions:
    return Dimensions.of_settings(model.config.to_dict())


def learned_everywhere() -> Batch:
    batch = a_batch(ROWS, LENGTH)
    return replace(batch, targets_BT=batch.tokens_BT.roll(-1, 1))


def kept_bytes(model: nn.Module, *, is_bf16: bool) -> int:
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


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_model(name):
    model = shaped(name)
    assert dimensions(model).parameters == count_parameters(model).total


@pytest.mark.parametrize("name", SHAPES)
def test_adapters_are_those_of_the_model(name):
    lora = LoraSpec(rank=3, target_modules=LINEAR)
    plain = dimensions(shaped(name))
    assert plain.adapters(lora) == count_parameters(with_adapters(shaped(name), lora, seed=0)).trainable


def test_targets_are_the_linear_layers_of_every_family():
    assert all(linear_names(tiny_model(kind)) == sorted(LINEAR) for kind in ("llama", "qwen2", "qwen3"))


LORA = LoraSpec(rank=4, dropout=0.1, target_modules=("q_proj", "v_proj", "o_proj", "down_proj"))


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("lora", [None, LORA, LORA.model_copy(update={"dropout": 0.0})])
@pytest.mark.parametrize("name", ["llama", "no groups", "wide heads", "qwen2", "qwen3"])
def test_activations_are_what_autograd_keeps(name, lora, is_bf16):
    model = shaped(name, num_hidden_layers=8).train()
    found = memory(dimensions(model), replace(SETUP, lora=lora, is_bf16=is_bf16))
    model = with_adapters(model, lora, seed=0).train() if lora else model
    # Of the three in `logits` only the log-softmax is kept; its gradients come later.
    expected = found.activations + found.logits - 2 * 4 * ROWS * LENGTH * model.config.vocab_size
    assert kept_bytes(model, is_bf16=is_bf16) == pytest.approx(expected, rel=0.05)
