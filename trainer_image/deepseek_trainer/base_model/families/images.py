"""Families of models that see images."""

from typing import Final

from deepseek_trainer.base_model.families.family import Family

ENTRIES: Final = (
    Family(
        "vit",
        "ViTForImageClassification",
        embedding="vit.embeddings",
        blocks="vit.layers.*",
        head="classifier",
        sees_images=True,
    ),
    Family(
        "bit",
        "BitForImageClassification",
        embedding="bit.embedder",
        blocks="bit.encoder.stages.*.layers.*",
        head="classifier.1",
        sees_images=True,
    ),
)
