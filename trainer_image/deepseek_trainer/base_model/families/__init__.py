"""What is particular to a family of models, in one table: a new family is one entry in a module of its kind and a test.

The table is data and pure functions, without torch and transformers, so that `dstj` reads it, too.  `model/blocks.py`
finds the named parts in a loaded model.
"""

import re
from collections.abc import Iterable
from typing import Final

from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.families import images, llama
from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.model import Architecture

FAMILIES: Final = {family.model_type: family for family in (*llama.ENTRIES, *images.ENTRIES)}


def family_of(model_type: object, where: str = "the base model") -> Family:
    """Raises ConfigError where the model that is `where` is of no family in the table."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{where} is a {_word(model_type)} model: of these the trainer knows neither the blocks nor their linear "
            "layers, nor which weights and dimensions follow from config.json",
            hint=f"models of type {', '.join(FAMILIES)} can be trained",
        )
    return FAMILIES[model_type]


def _word(model_type: object) -> str:
    is_word = isinstance(model_type, str) and re.fullmatch(r"[A-Za-z0-9_.-]{1,60}", model_type)
    return str(model_type) if is_word else shown(model_type)


def last_names(paths: Iterable[str]) -> list[str]:
    """As `targetModules` has them."""
    return sorted({path.rpartition(".")[2] for path in paths})


def read_dimensions(settings: Settings) -> Dimensions:
    """Raises ConfigError where config.json lacks one, or where the family's are not known."""
    return family_of(settings.get("model_type")).dimensions_for(settings)


def scratch_dimensions(architecture: Architecture) -> Dimensions:
    return read_dimensions(scratch_settings(architecture))


def scratch_settings(architecture: Architecture) -> Settings:
    """What the config.json of a model from scratch says of its shape."""
    return {
        "model_type": "llama",
        "vocab_size": architecture.vocab_size,
        "hidden_size": architecture.hidden_size,
        "intermediate_size": architecture.intermediate_size,
        "num_hidden_layers": architecture.num_layers,
        "num_attention_heads": architecture.num_heads,
        "num_key_value_heads": architecture.num_key_value_heads or architecture.num_heads,
        "tie_word_embeddings": architecture.tie_embeddings,
    }
