"""What somebody may put into the settings of a base model of images: it is loaded, or refused for good."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import BitConfig, BitForImageClassification, ViTConfig, ViTForImageClassification

from deepseek_trainer.base_model.directory import PREPROCESSOR
from deepseek_trainer.base_model.source import prepare_model
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.images.models import base_model
from deepseek_trainer.tasks.images.normalisation import Normalisation
from deepseek_trainer.worker.vaults import data_vault
from support.builders.images import an_image_job
from support.builders.model import paths_with_base

CLASSES = ("dark", "light")
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
BIT = {"embedding_size": 8, "hidden_sizes": [32], "depths": [1], "num_groups": 8}
ODD = (None, True, 0, -1, 3, 2**31, 10**30, 0.5, "x", [], [16], [0, 0], ["x"], {}, {"x": "y"}, {"0": 5}, ...)


@pytest.fixture
def bases(tmp_path):
    """Paths, and a function that puts a base model of a kind in its place."""
    paths, base = paths_with_base(tmp_path)
    models = {
        "vit": ViTForImageClassification(ViTConfig(**VIT, num_channels=1, image_size=16, patch_size=8)),
        "bit": BitForImageClassification(BitConfig(**BIT, num_channels=1)),
    }

    def put(kind: str, preprocessor: dict[str, Any] | None = None, **changes: Any):
        models[kind].save_pretrained(base)
        config = json.loads((base / "config.json").read_text()) | changes
        kept = {name: value for name, value in config.items() if value is not ...}
        (base / "config.json").write_text(json.dumps(kept))
        (base / PREPROCESSOR).write_text(json.dumps(preprocessor or {}))
        return kept

    return paths, put


def loaded(paths):
    config = an_image_job(vision=None, base={"claimName": "models", "path": "base"})
    vault = data_vault(config, paths)
    directory = prepare_model(config, paths, vault)
    Normalisation.of_base(directory, vault, 1)
    return base_model(directory, vault, CLASSES, 0)


WRONG = [
    ("vit", {"num_hidden_layers": 2**31}, "num_hidden_layers 2147483648: it must be a whole number from 1 to 4,096"),
    ("vit", {"num_hidden_layers": 4000}, "by config.json there are 4000 blocks, and only"),
    ("vit", {"hidden_size": 2**20}, "by config.json hidden_size is 1048576, and no weight is wider than 16"),
    ("vit", {"num_attention_heads": 0}, "num_attention_heads 0: it must be"),
    ("vit", {"num_attention_heads": 3}, "config.json cannot be read"),
    ("vit", {"patch_size": 0}, "patch_size 0: it must be one or two whole numbers"),
    ("vit", {"image_size": [16]}, "image_size [16]: it must be"),
    ("vit", {"hidden_act": "no such"}, "has hidden_act 'no such': it must be"),
    ("vit", {"id2label": ["dark"]}, "id2label ['dark']: it must be an object with a name for each number"),
    ("vit", {"id2label": {"²": "dark"}}, "it must be an object with a name for each number"),
    ("bit", {"depths": [2**31]}, "depths [2147483648]: it must be"),
    ("bit", {"depths": [4000]}, "by config.json there are 4000 blocks"),
    ("bit", {"hidden_sizes": [2**20]}, "by config.json hidden_sizes is [1048576], and no weight is wider"),
    ("bit", {"width_factor": 10**9}, "width_factor 1000000000: it must be a number from 0 to 64"),
    ("bit", {"num_groups": 7}, "config.json cannot be read"),
]


@pytest.mark.parametrize(("kind", "changes", "message"), WRONG)
def test_settings_that_no_model_has_are_refused(bases, kind, changes, message):
    paths, put = bases
    put(kind, **changes)
    with pytest.raises(ConfigError) as caught:
        loaded(paths)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "settings_of_pixels",
    [
        {"rescale_factor": "x"},
        {"rescale_factor": [1]},
        {"rescale_factor": 10**400},
        {"image_mean": [True], "image_std": [1]},
        {"image_mean": "0", "image_std": [1]},
        {"image_mean": [0.5], "image_std": [0]},
        {"image_mean": [10**400], "image_std": [1]},
    ],
)
def test_pixels_that_nobody_can_make_are_refused(bases, settings_of_pixels):
    paths, put = bases
    put("vit", settings_of_pixels)
    with pytest.raises(ConfigError, match=PREPROCESSOR):
        loaded(paths)


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(kind=st.sampled_from(["vit", "bit"]), value=st.sampled_from(ODD), data=st.data())
def test_any_value_of_any_setting_is_loaded_or_refused(bases, kind, value, data):
    paths, put = bases
    name = data.draw(st.sampled_from(sorted(put(kind))))
    put(kind, **{name: value})
    with suppress(ConfigError):
        assert loaded(paths)
