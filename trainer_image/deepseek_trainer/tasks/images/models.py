"""Image classifiers as they are before training: from scratch, or from a base that gets the job's classes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from transformers import BitConfig, BitForImageClassification, PreTrainedModel, ViTConfig, ViTForImageClassification

from deepseek_trainer.base_model.families import family_of
from deepseek_trainer.contract.images import ImagesSpec, ResNet, Vision, VisionTransformer
from deepseek_trainer.model.loading import filled, read_base
from deepseek_trainer.storage.vault import Vault

Json = dict[str, Any]

# Chance inside a model would come from a global stream, and not from seed and position.
NO_CHANCE: Final = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "drop_path_rate": 0.0}


def scratch_model(vision: Vision, images: ImagesSpec, classes: Sequence[str], seed: int) -> PreTrainedModel:
    """With weights drawn from `seed`; the caller's random state stays as it was."""
    with drawn_from(seed):
        if vision.resnet is not None:
            return BitForImageClassification(_bit(vision.resnet, images, classes))
        assert vision.vit is not None, "the spec asks for exactly one of resnet and vit"
        return ViTForImageClassification(_vit(vision.vit, images, classes))


def base_model(directory: Path, vault: Vault, classes: Sequence[str], seed: int) -> PreTrainedModel:
    """The prepared base.  Its head stays where it knows these classes, in this order; else a new one is drawn.

    Raises ConfigError where its weights do not fit its config.json.
    """
    settings, weights = read_base(directory, vault)
    head = f"{family_of(settings['model_type']).head}."
    is_known = _classes_of(settings) == list(classes)
    kept = {name: weight for name, weight in weights.items() if is_known or not name.startswith(head)}
    used = {name: weight for name, weight in kept.items() if "pooler." not in name}  # classifiers have none
    drawn = frozenset() if is_known else frozenset({f"{head}weight", f"{head}bias"})
    with drawn_from(seed):
        return filled({**settings, **taught(settings, classes)}, used, drawn=drawn)


def taught(settings: Mapping[str, Any], classes: Sequence[str]) -> Json:
    """What the config.json of a base with these `settings` says after training on `classes`."""
    return {name: value for name, value in NO_CHANCE.items() if name in settings} | labelled(classes)


def _classes_of(settings: Mapping[str, Any]) -> list[str]:
    return [name for _, name in sorted(settings.get("id2label", {}).items(), key=lambda entry: int(entry[0]))]


def labelled(classes: Sequence[str]) -> Json:
    """What a config.json says of the classes."""
    return {"id2label": dict(enumerate(classes)), "label2id": {name: number for number, name in enumerate(classes)}}


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Has the CPU draw from `seed` inside."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _bit(resnet: ResNet, images: ImagesSpec, classes: Sequence[str]) -> BitConfig:
    return BitConfig(
        num_channels=images.channels,
        embedding_size=resnet.stem_width,
        hidden_sizes=[stage.width for stage in resnet.stages],
        depths=[stage.blocks for stage in resnet.stages],
        num_groups=resnet.groups,
        **labelled(classes),
    )


def _vit(vit: VisionTransformer, images: ImagesSpec, classes: Sequence[str]) -> ViTConfig:
    return ViTConfig(
        image_size=[images.height, images.width],
        patch_size=vit.patch_size,
        num_channels=images.channels,
        hidden_size=vit.hidden_size,
        num_hidden_layers=vit.num_layers,
        num_attention_heads=vit.num_heads,
        intermediate_size=vit.intermediate_size,
        **labelled(classes),
    )
