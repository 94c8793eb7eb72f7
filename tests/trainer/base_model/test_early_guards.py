"""What only the ranks would stumble over when they build the model is refused when the base is read."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from deepseek_trainer.base_model.kept import kept_files
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.base_model.rotary import ROTARY, are_positions
from deepseek_trainer.base_model.source import source_model
from deepseek_trainer.base_model.tokenizer_files import files_of
from deepseek_trainer.contract.errors import ConfigError
from support.builders.model import a_tokenizer, tiny_model

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FACTORS = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4, "short_factor": [1.0], "long_factor": [2.0]}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    directory = tmp_path_factory.mktemp("good")
    tiny_model(tie_word_embeddings=True).save_pretrained(directory)
    for name, content in files_of(a_tokenizer()).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def base(good, tmp_path):
    """A copy to spoil."""
    return shutil.copytree(good, tmp_path / "base")


def refusal(base):
    with pytest.raises(ConfigError) as caught:
        source_model(Place(base, base))
    assert caught.value.hint
    return caught.value.problem


def edit(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def edit_weights(base, change):
    file = base / "model.safetensors"
    weights = {key: change(key, weight) for key, weight in safetensors.torch.load_file(file).items()}
    safetensors.torch.save_file(weights, file)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.int8, torch.int32, torch.uint8, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_weights_of_a_type_that_is_not_loaded_are_named(base, dtype):
    edit_weights(base, lambda key, weight: weight.to(dtype) if key.endswith("norm.weight") else weight)
    message = refusal(base)
    assert "norm.weight" in message
    assert "weights of F32, BF16, F16 can be trained" in message


def test_a_base_in_fp8_is_called_quantised_before_its_weights_are_looked_at(base):
    edit_weights(base, lambda _, weight: weight.to(torch.float8_e4m3fn))
    edit(base / "config.json", quantization_config={"quant_method": "fp8"})
    assert "is quantised (fp8)" in refusal(base)


@pytest.mark.parametrize("key", ["hidden_act", "hidden_activation", "activation_function"])
def test_an_activation_that_nobody_knows_is_named(base, key):
    edit(base / "config.json", **{key: "nonsense"})
    assert f"{key} 'nonsense'" in refusal(base)


@pytest.mark.parametrize("key", ["rope_parameters", "rope_scaling"])
@pytest.mark.parametrize(
    "value",
    [
        {"rope_type": "nonsense"},
        {"type": 5},
        {"rope_theta": "x"},
        {"rope_type": "yarn"},
        {"rope_type": "linear", "factor": -1},
        {"rope_type": "llama3", "factor": 8},
        {"rope_type": "longrope", "short_factor": [1], "long_factor": [None]},
        {"full_attention": {"rope_type": "nonsense"}},
    ],
)
def test_positions_that_cannot_be_computed_are_named(base, key, value):
    edit(base / "config.json", **{key: value})
    assert f"has {key} {{" in refusal(base)


def test_kinds_of_rotation_are_those_of_transformers():
    assert set(ROTARY) - {"default", "su"} == set(ROPE_INIT_FUNCTIONS)


@pytest.mark.parametrize("kind", ROTARY)
@pytest.mark.parametrize("name", ["rope_type", "type"])
def test_every_kind_of_rotation_with_what_it_needs_is_taken(kind, name):
    value = {name: kind, "rope_theta": 1e4} | {need: FACTORS[need] for need in ROTARY[kind]}
    assert are_positions(value)
    assert are_positions({"full_attention": value, "sliding_attention": {"rope_type": "default"}})
    assert all(not are_positions({key: each for key, each in value.items() if key != need}) for need in ROTARY[kind])


def test_a_head_that_is_tied_by_config_alone_is_refused(base):
    file = base / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file(weights | {HEAD: weights[EMBEDDING].clone()}, file)
    source_model(Place(base, base))
    safetensors.torch.save_file(weights | {HEAD: weights[EMBEDDING] + 1}, file)
    assert f"{HEAD} is another than {EMBEDDING}" in refusal(base)
    edit(base / "config.json", tie_word_embeddings=False)
    source_model(Place(base, base))


def test_a_weight_in_another_file_than_the_index_says_is_refused(base):
    weights = safetensors.torch.load_file(base / "model.safetensors")
    safetensors.torch.save_file({EMBEDDING: weights.pop(EMBEDDING)}, base / "other.safetensors")
    safetensors.torch.save_file(weights, base / "model.safetensors")
    listed = dict.fromkeys(weights, "model.safetensors") | {EMBEDDING: "other.safetensors"}
    edit_index(base, listed)
    source_model(Place(base, base))
    edit_index(base, listed | {"model.norm.weight": "other.safetensors"})
    assert "'model.norm.weight' in 'other.safetensors', and it lies in model.safetensors" in refusal(base)


def edit_index(base, listed):
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


def test_an_end_of_text_that_the_tokenizer_does_not_know_is_refused(base):
    edit(base / "tokenizer_config.json", eos_token="<|nowhere|>")
    assert "eos_token '<|nowhere|>', which tokenizer.json does not know" in refusal(base)


@pytest.mark.parametrize("value", ["x", 1.5, [None], {"a": 1}])
def test_generation_settings_with_an_end_that_is_no_token_are_refused(base, value):
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ConfigError, match=r"generation_config\.json has eos_token_id"):
        kept_files(Place(base, base))
