"""What the table of families refuses, before anything is loaded."""

import subprocess
import sys

import pytest

from deepseek_trainer.base_model.families import FAMILIES, family_of, read_dimensions
from deepseek_trainer.base_model.headers import refuse_other_weights
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.contract.errors import ConfigError
from support.builders.families import RESNET
from support.builders.model import a_config


@pytest.fixture
def with_resnet(monkeypatch):
    monkeypatch.setitem(FAMILIES, "resnet", RESNET)
    return {"model_type": "resnet"}


def test_a_family_that_the_table_does_not_have_is_refused_with_what_is_not_known_of_it():
    with pytest.raises(ConfigError) as caught:
        family_of("mamba", "/claims/models/base", {"architectures": ["MambaForCausalLM"]})
    assert str(caught.value).startswith("/claims/models/base is a mamba model (MambaForCausalLM): the trainer does not")
    for unknown in ("linear layers", "weights and dimensions", "attention sees", "head's outputs"):
        assert unknown in caught.value.problem
    assert f"models of type {', '.join(FAMILIES)} can be trained" in caught.value.hint
    assert "CONTRIBUTING.md" in caught.value.hint


@pytest.mark.parametrize(
    ("model_type", "settings", "nearest"),
    [
        ("qwen4", {}, "the nearest is qwen"),
        ("gemma3", {"text_config": {"model_type": "gemma3_text"}}, "its text model alone, gemma3_text, can be trained"),
        ("jamba", {"architectures": "no list", "text_config": []}, "models of type"),
    ],
)
def test_the_nearest_family_is_named(model_type, settings, nearest):
    with pytest.raises(ConfigError) as caught:
        family_of(model_type, settings=settings)
    assert nearest in caught.value.hint


SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 9}


@pytest.mark.parametrize(
    ("settings", "method", "message"),
    [
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, {}, "sets use_bidirectional_attention"),
        ({"model_type": "stablelm", "use_parallel_residual": True}, {}, "sets use_parallel_residual"),
        ({"model_type": "gpt2", "add_cross_attention": True}, {}, "sets add_cross_attention"),
        ({"model_type": "qwen3", "layer_types": ["chunked_attention"]}, {}, "layer_types 'chunked_attention'"),
        ({"model_type": "gpt2"}, {"type": "QLoRA"}, "gpt2 models hold their weights transposed"),
    ],
)
def test_variants_of_a_family_that_are_not_known_are_refused_before_anything_is_loaded(settings, method, message):
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    with pytest.raises(ConfigError, match=message):
        refuse_misfit(a_config(method=method), {**SHAPE, **gpt2, **settings})


def test_a_row_longer_than_learned_positions_is_refused():
    settings = {"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 9}
    with pytest.raises(ConfigError, match=r"data.sequenceLength=64 is longer than the base model's 32 positions"):
        refuse_misfit(a_config(method={}), settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": {"type": "LoRA"}}, "method.type LoRA: of resnet models no linear layers of a block are known"),
        ({"method": {"type": "QLoRA"}}, "method.type QLoRA: of resnet models no linear layers of a block are known"),
        ({"method": {"type": "Auto"}}, "method.type Auto: of resnet models no linear layers of a block are known"),
        (
            {"method": {}, "optimization": {"dropout": 0.1}},
            "optimization.dropout: of resnet models no layers that write to the residual stream are known",
        ),
    ],
)
def test_what_a_family_cannot_do_is_refused_with_what_asked_for_it(with_resnet, changes, message):
    with pytest.raises(ConfigError) as caught:
        refuse_misfit(a_config(**changes), with_resnet)
    assert str(caught.value).startswith(message)


def test_a_family_without_linear_layers_and_dimensions_is_trained_in_full(with_resnet):
    refuse_misfit(a_config(method={"frozenLayers": 1}), with_resnet)
    with pytest.raises(ConfigError, match="memory and FLOPs: of resnet models no dimensions are known"):
        read_dimensions(with_resnet)


def test_weights_of_a_family_that_lists_none_are_left_to_be_compared_when_they_are_loaded(with_resnet, tmp_path):
    refuse_other_weights(tmp_path, {"anything": ("model.safetensors", (1,))}, with_resnet)


def test_the_table_is_read_without_torch_transformers_and_numpy():
    code = (
        "import sys, deepseek_trainer.base_model.misfit; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "set()\n"
