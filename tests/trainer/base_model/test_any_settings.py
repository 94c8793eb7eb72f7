"""Any value of any key of a config.json, of every family: the model is taken, or refused by the key's name."""

from contextlib import suppress

import pytest
from transformers.activations import ACT2FN

from deepseek_trainer.base_model.bounds import ACTIVATIONS, refuse_out_of_bounds
from deepseek_trainer.base_model.families import family_of, read_dimensions
from deepseek_trainer.base_model.headers import refuse_other_weights
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.contract.errors import ConfigError
from support.builders.families import SPARSE, VARIANTS, settings_of
from support.builders.model import a_config

VALUES = (
    None,
    True,
    0,
    -1,
    1,
    7,
    2**40,
    10**30,
    1.5,
    1e300,
    "",
    "x",
    [],
    [0],
    ["x"],
    {},
    {"x": 1},
    {"rope_theta": "x"},
    ...,
)
JOBS = (
    a_config(),
    a_config(method={"type": "QLoRA", "lora": {"rank": 4, "targetModules": ["all-linear"]}}),
    a_config(method={"type": "Full"}, optimization={"optimizer": "Muon"}),
)


def examined(settings, weights):
    """What preparing, planning and validating ask of a config.json."""
    family_of(settings.get("model_type"), "the base model", settings)
    refuse_out_of_bounds(settings)
    refuse_other_weights("the base model", weights, settings)
    read_dimensions(settings)
    for job in JOBS:
        with suppress(ConfigError):
            refuse_misfit(job, settings)


def refusal(settings, weights):
    """What is wrong with it; any error but a ConfigError fails the test."""
    try:
        examined(settings, weights)
    except ConfigError as error:
        return str(error)
    return None


def good_and_its_weights(variant):
    settings = settings_of(variant)
    family = family_of(settings["model_type"])
    return settings, {name: ("model.safetensors", shape) for name, shape in family.weights(settings).items()}


def changed(settings, key, value):
    return {name: each for name, each in (settings | {key: value}).items() if each is not ...}


@pytest.mark.parametrize("variant", [*VARIANTS, *SPARSE])
def test_any_value_of_any_key_is_taken_or_refused(variant):
    good, weights = good_and_its_weights(variant)
    assert refusal(good, weights) is None
    said = [refusal(changed(good, key, value), weights) for key in good for value in VALUES]
    assert all(message is None or "(hint: " in message for message in said)


@pytest.mark.parametrize("variant", [*VARIANTS, *SPARSE])
def test_what_a_family_cannot_do_without_is_refused_by_its_name(variant):
    good, weights = good_and_its_weights(variant)
    sizes = {"vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"} & good.keys()
    assert sizes or variant == "gpt2"
    for key in sizes:
        assert refusal(changed(good, key, ...), weights) == (
            f"the base model's config.json lacks {key} (hint: take it from the model's own release)"
        )


def test_the_activations_that_are_known_are_those_of_transformers():
    assert set(ACT2FN) == set(ACTIVATIONS)
    assert "hidden_act 'x': it must be the name of an activation" in str(
        refusal({"model_type": "llama", "hidden_act": "x"}, {})
    )
