"""What is particular to a family of models, in one table: a new family is one entry in a module of its kind and a test.

The table is data and pure functions, without torch and transformers, so that `dstj` reads it, too.  `model/blocks.py`
finds the named parts in a loaded model.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from difflib import get_close_matches
from typing import Final

from deepseek_trainer.base_model.decoder import Settings
from deepseek_trainer.base_model.families import deepseek, dense, images, llama, mixture
from deepseek_trainer.base_model.families.family import Family
from deepseek_trainer.base_model.families.scratch import scratch_settings
from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.model import Architecture, ArchitectureFamily

NOTHING: Final[Settings] = {}
_ENTRIES: Final = (*llama.ENTRIES, *dense.ENTRIES, *mixture.ENTRIES, *deepseek.ENTRIES, *images.ENTRIES)
FAMILIES: Final = {family.model_type: family for family in _ENTRIES}


def family_of(model_type: object, where: str = "the base model", settings: Settings = NOTHING) -> Family:
    """Raises ConfigError where the model that is `where` is of no family in the table, with what is not known of it.

    `settings`: the content of its config.json, as far as that is known.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ConfigError(
            f"{where} is a {_word(model_type)} model{_classes(settings)}: the trainer does not know the names of its "
            "parts and linear layers, which weights and dimensions follow from config.json, what its attention sees of "
            "a text, and what it makes of its head's outputs",
            hint=f"{_nearest(model_type, settings)}models of type {', '.join(FAMILIES)} can be trained; an entry in "
            "base_model/families/ makes one known (CONTRIBUTING.md: a model family)",
        )
    return FAMILIES[model_type]


def _classes(settings: Settings) -> str:
    """The classes that config.json names, if they are words."""
    named = settings.get("architectures")
    words = [_word(name) for name in named[:3]] if isinstance(named, list) else []
    return f" ({', '.join(words)})" if words else ""


def _nearest(model_type: object, settings: Settings) -> str:
    inner = settings.get("text_config")
    text = inner.get("model_type") if isinstance(inner, dict) else None
    if text in FAMILIES:
        return f"it reads more than text; a release of its text model alone, {text}, can be trained; "
    close = get_close_matches(str(model_type)[:60], FAMILIES, 1)
    return f"the nearest is {close[0]}; " if close else ""


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
    found = read_dimensions(scratch_settings(architecture))
    return replace(found, is_repeated=architecture.family is ArchitectureFamily.ALBERT)
