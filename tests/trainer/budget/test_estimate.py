"""Memory of a rank before anything is loaded, against what torch keeps."""

from dataclasses import replace

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from deepseek_trainer.base_model.families import FAMILIES, last_names, read_dimensions
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.budget.estimate import Setup, largest_rows, memory, needed, of_logit, shortage
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import LoraSpec, MethodSpec
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model.adapters import with_adapters
from deepseek_trainer.model.dropout import drop_out, rows_drawn
from deepseek_trainer.model.loading import count_parameters
from deepseek_trainer.model.method import trainable
from deepseek_trainer.tasks.language.batch import TokenBatch
from deepseek_trainer.tasks.language.loss import causal_loss
from deepseek_trainer.training.optimizer import optimizers, state_by_name
from support.builders.model import a_batch, tiny_model

ROWS, LENGTH = 3, 40
SETUP = Setup(ROWS, LENGTH, lora=None, is_bf16=False, is_cuda=False, ranks=1, is_asynchronous=True)
SMALL = read_dimensions(
    {
        "model_type": "llama",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
    }
)
LINEAR = tuple(last_names(FAMILIES["llama"].linear))
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
    return read_dimensions(model.config.to_dict())


def learned_everywhere() -> TokenBatch:
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
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=is_bf16), rows_drawn(torch.arange(ROWS)):
        causal_loss(model, learned_everywhere())
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_model(name):
    model = shaped(name)
    assert dimensions(model).parameters == count_parameters(model).total


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_adapters_are_those_of_the_model(name, dora):
    lora = LoraSpec(rank=3, target_modules=LINEAR, dora=dora)
    plain = dimensions(shaped(name))
    assert plain.adapters(lora) == count_parameters(with_adapters(shaped(name), lora, seed=0)).trainable


LORA = LoraSpec(rank=4, dropout=0.1, target_modules=("q_proj", "v_proj", "o_proj", "down_proj"))


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("lora", [None, LORA, LORA.model_copy(update={"dropout": 0.0})])
@pytest.mark.parametrize("name", ["llama", "no groups", "wide heads", "qwen3"])
def test_activations_are_what_autograd_keeps(name, lora, is_bf16):
    model = shaped(name, num_hidden_layers=6).train()
    found = memory(dimensions(model), replace(SETUP, lora=lora, is_bf16=is_bf16))
    model = with_adapters(model, lora, seed=0).train() if lora else model
    # Of the logits nothing is kept but what they gave to gradients.
    expected = found.activations + found.logits - of_logit(is_bf16=is_bf16) * ROWS * LENGTH * model.config.vocab_size
    assert kept_bytes(model, is_bf16=is_bf16) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("is_bf16", [False, True])
def test_dropout_keeps_a_mask_of_what_it_let_pass(is_bf16):
    model = shaped("llama", num_hidden_layers=6).train()
    spec = OptimizationSpec(dropout=0.1)
    plain, setup = kept_bytes(model, is_bf16=is_bf16), replace(SETUP, is_bf16=is_bf16)
    drop_out(model, spec.dropout)
    found = [
        memory(dimensions(model), replace(setup, optimization=each)).activations for each in (OptimizationSpec(), spec)
    ]
    assert kept_bytes(model, is_bf16=is_bf16) - plain == found[1] - found[0] > 0


@pytest.mark.parametrize(
    ("method", "optimizer"),
    [
        (MethodSpec(), "AdamW"),
        (MethodSpec(), "Muon"),
        (MethodSpec(frozen_layers=1), "AdamW"),
        (MethodSpec(type="LoRA", lora=LORA), "AdamW"),
        (MethodSpec(type="LoRA", lora=LoraSpec(target_modules=("all-linear",))), "AdamW"),
    ],
)
def test_weights_gradients_and_moments_are_those_of_a_step(method: MethodSpec, optimizer: str):
    spec = OptimizationSpec(optimizer=optimizer)
    model = trainable(tiny_model(), method, 0, torch.device("cpu"), torch.float32)
    parts = optimizers(model, spec)
    with rows_drawn(torch.arange(3)):
        causal_loss(model, a_batch(3))[0].backward()
    for part in parts:
        part.step()
    state = state_by_name(dict(model.named_parameters()), parts)
    moments = [value for each in state.values() for key, value in each.items() if key != "step"]
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    found = memory(dimensions(tiny_model()), replace(SETUP, lora=method.adapters, method=method, optimization=spec))
    measured = [sum(tensor.nbytes for tensor in part) for part in (model.parameters(), gradients, moments)]
    assert measured == [found.weights, found.gradients, found.moments]


def test_weights_in_nf4_take_what_the_estimate_says():
    """To a tenth: of scales that are so few, bitsandbytes rounds the number up."""
    method = MethodSpec(type="QLoRA", lora=LORA)
    model = trainable(tiny_model(), method, 0, torch.device("cpu"), torch.float32)
    scales = sum(m.weight.quant_state.absmax.nbytes for m in model.modules() if isinstance(m, Linear4bit))
    found = memory(dimensions(tiny_model()), replace(SETUP, lora=LORA, method=method))
    assert sum(p.nbytes for p in model.parameters()) + scales == pytest.approx(found.weights, rel=0.1)


def test_shards_divide_what_is_kept_and_averages_add_the_weights_again():
    whole = memory(SMALL, replace(SETUP, ranks=4))
    sharded = memory(SMALL, replace(SETUP, ranks=4, optimization=OptimizationSpec(strategy="FSDP")))
    assert 4 * sharded.certain == whole.certain
    assert sharded.buckets < whole.buckets
    averaged = memory(SMALL, replace(SETUP, optimization=OptimizationSpec(ema_decay=0.9)))
    assert averaged.weights == 2 * memory(SMALL, SETUP).weights


def test_pairs_take_the_weights_again_unless_adapters_part_the_reference_from_what_is_trained():
    whole, sharded = (replace(SETUP, ranks=4, optimization=OptimizationSpec(strategy=s)) for s in ("DDP", "FSDP"))
    for setup, shards in ((whole, 1), (sharded, 4)):
        found = memory(SMALL, replace(setup, has_pairs=True, has_reference=True))
        by_odds = memory(SMALL, replace(setup, has_pairs=True))
        assert by_odds.weights == memory(SMALL, setup).weights, "without a reference"
        assert found.weights == 2 * memory(SMALL, setup).weights == 2 * 4 * SMALL.parameters // shards
        assert found.gradients == memory(SMALL, setup).gradients
    adapted = replace(SETUP, lora=LORA, method=MethodSpec(type="LoRA", lora=LORA))
    of_pairs, of_tokens = (
        memory(SMALL, replace(adapted, has_pairs=pairs, has_reference=pairs)) for pairs in (True, False)
    )
    assert replace(of_pairs, logits=of_tokens.logits) == of_tokens


def test_full_recomputation_keeps_a_fraction_of_the_activations():
    full = memory(SMALL, replace(SETUP, optimization=OptimizationSpec(recompute="Full")))
    assert full.activations < memory(SMALL, SETUP).activations / 5


@given(limit=st.integers(0, 2**36), rows=st.integers(1, 4096), is_bf16=st.booleans(), is_cuda=st.booleans())
def test_largest_micro_batch_fits_and_one_row_more_does_not(limit, rows, is_bf16, is_cuda):
    setup = replace(SETUP, rows=rows, is_bf16=is_bf16, is_cuda=is_cuda)
    largest = largest_rows(SMALL, setup, limit)
    assert not largest or needed(SMALL, replace(setup, rows=largest)) <= limit
    assert largest == rows or needed(SMALL, replace(setup, rows=largest + 1)) > limit


def test_each_rank_copies_its_share_of_a_save_and_a_save_that_is_waited_for_needs_no_copy():
    copies = [memory(SMALL, replace(SETUP, ranks=ranks)).host_copy for ranks in (1, 4)]
    assert copies == [12 * SMALL.parameters, 3 * SMALL.parameters]
    assert memory(SMALL, replace(SETUP, is_asynchronous=False)).host_copy == 0


def test_only_what_is_certain_is_too_much():
    found = memory(SMALL, SETUP)
    assert shortage(found, 2, None, 2 * found.certain) is None
    assert shortage(found, 2, None, None) is None
    assert shortage(found, 2, None, 2 * found.certain - 1) == (
        "weights, gradients and moments take 4.0 GiB, the container has 4.0 GiB"
    )


def test_what_is_certain_is_in_a_gpu_or_where_it_is_offloaded_in_the_container_of_all_ranks():
    gpu = replace(SETUP, is_cuda=True, ranks=2)
    whole, offloaded = (
        memory(SMALL, replace(gpu, optimization=OptimizationSpec(strategy="FSDP", offload=offload)))
        for offload in (False, True)
    )
    assert whole.certain == offloaded.certain
    assert (whole.device - offloaded.device, offloaded.host - whole.host) == (whole.certain, whole.certain)
    assert shortage(whole, 2, whole.certain, 1) is None
    assert "the GPU has" in shortage(whole, 2, whole.certain - 1, None)
    assert shortage(offloaded, 2, 1, 2 * whole.certain) is None
    assert "the container has" in shortage(offloaded, 2, 1, 2 * whole.certain - 1)


def test_on_the_cpu_offload_moves_nothing():
    spec = OptimizationSpec(strategy="FSDP")
    setups = [replace(SETUP, ranks=2, optimization=spec.model_copy(update={"offload": each})) for each in (False, True)]
    assert len({needed(SMALL, setup) for setup in setups}) == 1


def test_config_without_a_dimension_is_refused_by_its_name():
    with pytest.raises(ConfigError, match=r"lacks intermediate_size"):
        read_dimensions({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1})


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_what_a_config_leaves_out_is_what_transformers_assumes(kind):
    settings = tiny_model(kind).config.to_dict()
    for name in ("num_key_value_heads", "head_dim", "tie_word_embeddings", "attention_bias", "mlp_bias"):
        settings.pop(name, None)
    config = type(tiny_model(kind).config)(**settings)
    assert read_dimensions(settings) == read_dimensions(config.to_dict())
