"""Image classifiers that are there already: what is kept of them, and which are refused before anything is trained."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForImageClassification,
    BitConfig,
    BitForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from deepseek_trainer.base_model.directory import PREPROCESSOR
from deepseek_trainer.base_model.misfit import refuse_misfit
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import RUN_ID, prepare
from support.builders.data import a_config as a_text_job
from support.builders.images import an_image_job, write_pictures
from support.builders.run import a_worker, trained

BASE = {"base": {"claimName": "models", "path": "base"}}
SIZES = {"num_channels": 1}
KNOWN = {"id2label": {0: "dark", 1: "light"}, "label2id": {"dark": 0, "light": 1}}
MEAN = {"image_mean": [0.25], "image_std": [0.125], "do_rescale": True, "rescale_factor": 0.00392156862745098}


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paths]:
    with a_worker(tmp_path, monkeypatch) as paths:
        for file in paths.claim("corpus").rglob("*.jsonl"):
            file.unlink()
        write_pictures(paths)
        yield paths


def a_bit(**config: Any) -> PreTrainedModel:
    shape = {"embedding_size": 8, "hidden_sizes": [32], "depths": [1], "num_groups": 8}
    return BitForImageClassification(BitConfig(**SIZES, **shape, **config))


def a_vit(**config: Any) -> PreTrainedModel:
    return ViTForImageClassification(ViTConfig(**vit_settings(), **config))


def vit_settings() -> dict[str, Any]:
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return {**SIZES, **shape, "image_size": 16, "patch_size": 8}


def given(paths: Paths, model: PreTrainedModel, preprocessor: dict[str, Any] | None = None) -> Path:
    directory = paths.claim("models", "base")
    model.save_pretrained(directory)
    if preprocessor is not None:
        (directory / PREPROCESSOR).write_text(json.dumps(preprocessor))
    return directory


def a_job(**changes: Any) -> TrainingConfig:
    return an_image_job(vision=None, base=BASE["base"], **changes)


def refusal(paths: Paths, config: TrainingConfig) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        prepare(config, paths, data_vault(config, paths), RUN_ID)
    assert not any(path.name.startswith("model-") for path in paths.prepared.iterdir())
    return error.value


@pytest.mark.parametrize("make", [a_bit, a_vit])
def test_a_base_gets_the_classes_of_the_job_and_keeps_all_else(paths: Paths, make: Any):
    base = make(num_labels=5)
    given(paths, base, MEAN)
    result = trained(a_job(maxSteps=1, learningRate=1e-7), paths)
    model, loading = AutoModelForImageClassification.from_pretrained(result, output_loading_info=True)
    assert not any(loading.values())
    assert model.config.id2label == {0: "dark", 1: "light"}
    expected = dict(base.named_parameters())
    for name, weight in model.named_parameters():
        if not name.startswith("classifier"):
            torch.testing.assert_close(weight, expected[name], rtol=0, atol=1e-6)
    settings = json.loads((result / PREPROCESSOR).read_text())
    assert (settings["image_mean"], settings["image_std"]) == ([0.25], [0.125])


@pytest.mark.parametrize("make", [a_bit, a_vit])
def test_the_head_of_a_base_that_knows_these_classes_stays(paths: Paths, make: Any):
    base = make(**KNOWN)
    given(paths, base)
    result = trained(a_job(maxSteps=1, learningRate=1e-7), paths)
    model = AutoModelForImageClassification.from_pretrained(result)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, dict(base.named_parameters())[name], rtol=0, atol=1e-6)


def test_an_encoder_without_a_head_gets_one(paths: Paths):
    given(paths, ViTModel(ViTConfig(**vit_settings())))
    result = trained(a_job(maxSteps=1), paths)
    assert AutoModelForImageClassification.from_pretrained(result).classifier.out_features == 2


def test_chance_inside_a_base_is_switched_off(paths: Paths):
    given(paths, a_vit(hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5))
    result = trained(a_job(maxSteps=1), paths)
    settings = json.loads((result / "config.json").read_text())
    assert (settings["hidden_dropout_prob"], settings["attention_probs_dropout_prob"]) == (0.0, 0.0)


def test_batch_normalisation_is_refused_with_the_reason_and_a_way_out(paths: Paths):
    shape = {"embedding_size": 8, "hidden_sizes": [16], "depths": [1]}
    given(paths, ResNetForImageClassification(ResNetConfig(**SIZES, **shape)))
    error = refusal(paths, a_job())
    assert "running_mean: with batch normalisation, what a model learns depends on the micro-batch" in error.problem
    assert error.hint == "take one that normalises by groups or layers: a model of type bit (a residual network) or vit"


@pytest.mark.parametrize(
    ("make", "size", "beginning", "hint"),
    [
        (a_bit, {"height": 16, "width": 16}, "data.images.channels=3: the base model takes", "data.images.channels: 1"),
        (a_vit, {"height": 16, "width": 24, "channels": 1}, "data.images are 16 x 24 pixels: the", "width: 16"),
    ],
)
def test_images_of_another_shape_than_the_base_takes_are_refused(
    paths: Paths, make: Any, size: Any, beginning: str, hint: str
):
    given(paths, make())
    error = refusal(paths, a_job(size=size))
    assert error.problem.startswith(beginning)
    assert error.hint.endswith(hint)


def test_models_of_texts_are_refused_for_images_and_the_other_way_round():
    for config, model_type, hint in (
        (a_job(), "qwen3", "models of type vit, bit can"),
        (a_text_job(), "vit", "models of type llama, qwen2, qwen3, mistral"),
    ):
        with pytest.raises(ConfigError) as error:
            refuse_misfit(config, {"model_type": model_type})
        beginning = f"model.base is a {model_type} model: it cannot read data.format "
        assert error.value.problem == beginning + config.data.format
        assert error.value.hint.startswith(hint)


@pytest.mark.parametrize(
    "preprocessor",
    [{"image_mean": [0.5, 0.5, 0.5]}, {"image_std": [0.0]}, {"image_mean": "x"}, {"rescale_factor": 0.00784}],
    ids=str,
)
def test_a_preprocessor_that_does_something_else_is_refused(paths: Paths, preprocessor: Any):
    given(paths, a_bit(), preprocessor)
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json has"):
        prepare(a_job(), paths, data_vault(a_job(), paths), RUN_ID)
