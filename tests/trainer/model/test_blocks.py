"""That the entries of the table of families say what is true of the models of transformers."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from transformers.pytorch_utils import Conv1D

from deepseek_trainer.base_model.families import FAMILIES
from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.method import LoraSpec, MethodSpec
from deepseek_trainer.contract.optimization import Recompute
from deepseek_trainer.model.adapters import with_adapters
from deepseek_trainer.model.blocks import blocks, embedding, find, head
from deepseek_trainer.model.dropout import drop_out
from deepseek_trainer.model.loading import count_parameters
from deepseek_trainer.model.method import freeze, trainable
from deepseek_trainer.model.recompute import recompute_activations
from deepseek_trainer.tasks.language.loss import causal_loss
from support.builders.families import RESNET, VARIANTS, a_model, a_resnet, model_type_of
from support.builders.model import a_batch, tiny_model

CPU = torch.device("cpu")


@pytest.fixture(params=VARIANTS)
def entry(request) -> tuple[Family, nn.Module]:
    return FAMILIES[model_type_of(request.param)], a_model(request.param)


def test_blocks_embedding_and_head_are_where_the_entry_says(entry):
    family, model = entry
    assert type(model).__name__ == family.model_class
    assert find(model, family.blocks) == [*model.get_decoder().get_submodule(family.blocks.split(".")[1])]
    assert find(model, family.embedding) == [model.get_input_embeddings()]
    assert find(model, family.head) == [model.get_output_embeddings()]


def test_linear_layers_of_the_entry_are_all_that_a_block_has(entry):
    family, model = entry
    for block in find(model, family.blocks):
        assert {name for name, each in block.named_modules() if isinstance(each, nn.Linear | Conv1D)} == {
            *family.linear
        }


def test_blocks_whose_residual_layers_are_zero_add_nothing_to_the_residual_stream(entry):
    family, model = entry
    for layer in [
        layer for block in find(model, family.blocks) for path in family.residual for layer in find(block, path)
    ]:
        layer.register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
    with torch.no_grad():
        states = model.get_decoder()(a_batch().tokens_BT, output_hidden_states=True).hidden_states
    assert all(torch.equal(state, states[0]) for state in states[:-1]), "the last one is normalised"


def test_weights_and_dimensions_that_follow_from_config_json_are_those_of_the_model(entry):
    family, model = entry
    settings = model.config.to_dict()
    assert family.weights(settings) == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    dimensions = family.dimensions(settings)
    assert dimensions.parameters == count_parameters(model).total
    assert tuple(layer.path for layer in dimensions.linear) == family.linear


ALL_LINEAR = {"rank": 2, "targetModules": ["all-linear"], "dropout": 0}
METHODS = [{"frozenLayers": 1}, {"type": "LoRA", "lora": ALL_LINEAR}, {"type": "QLoRA", "lora": ALL_LINEAR}]


@pytest.mark.parametrize("method", METHODS, ids=["frozen", "LoRA", "QLoRA"])
def test_a_family_that_has_an_entry_is_trained_by_every_method(entry, method):
    family, model = entry
    if family.is_transposed and method.get("type") == "QLoRA":
        pytest.skip("refused: see test_families.py")
    model = trainable(model.train(), MethodSpec.model_validate(method), 0, CPU, torch.float32)
    recompute_activations(model, Recompute.FULL)
    causal_loss(model, a_batch())[0].backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    frozen = (family.embedding, family.positions) if "frozenLayers" in method else ()
    assert not any(name.startswith(path) for name in trained for path in frozen if path)


def test_nothing_is_dropped_but_by_the_job(entry):
    _, model = entry
    drop_out(model.train(), 0.0)
    once, again = (causal_loss(model, a_batch())[0] for _ in range(2))
    assert torch.equal(once, again)


def test_parts_are_found_inside_of_peft_and_in_a_copy():
    plain = tiny_model()
    layers = [*plain.model.layers]
    adapted = with_adapters(plain, LoraSpec(), seed=0)
    copied = copy.deepcopy(adapted)
    assert (blocks(adapted), embedding(adapted), head(adapted)) == (layers, plain.model.embed_tokens, plain.lm_head)
    assert blocks(copied) == [*copied.get_base_model().model.layers]


def test_parts_are_found_in_a_sharded_model():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = tiny_model()
        for block in blocks(model):
            fully_shard(block)
        assert blocks(fully_shard(model)) == [*model.model.layers]
    finally:
        dist.destroy_process_group()


def test_a_family_without_a_decoder_has_blocks_to_freeze_and_to_recompute(monkeypatch):
    """Its blocks lie in stages."""
    monkeypatch.setitem(FAMILIES, "resnet", RESNET)
    plain, pixels = a_resnet(), torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert [len(block.layer) for block in blocks(plain)] == [2, 2, 2]
    freeze(plain, 1)
    frozen = {name.rpartition(".layers.")[0] for name, p in plain.named_parameters() if not p.requires_grad}
    assert len(frozen) == 2, "the embedding, and one block"
    other = copy.deepcopy(plain)
    recompute_activations(other, Recompute.FULL)
    for model in (plain, other):
        model.train()(pixels).logits.sum().backward()
    trained = [(p.grad, q.grad) for p, q in zip(plain.parameters(), other.parameters(), strict=True) if p.requires_grad]
    assert all(torch.equal(*gradients) for gradients in trained)


def test_what_the_entry_of_a_model_leaves_out_is_refused(monkeypatch):
    monkeypatch.setitem(FAMILIES, "resnet", RESNET)
    with pytest.raises(ConfigError, match=r"method\.type LoRA: of resnet models no linear layers"):
        trainable(a_resnet(), MethodSpec(type="LoRA"), 0, CPU, torch.float32)
    with pytest.raises(ConfigError, match=r"optimization\.dropout: of resnet models no layers that write to the resid"):
        drop_out(a_resnet(), 0.1)
