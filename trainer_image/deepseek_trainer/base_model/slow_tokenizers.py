"""Tokenizers in files that are not read: what they are called, and how tokenizer.json is made of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from deepseek_trainer.base_model.guard import place
from deepseek_trainer.base_model.place import Place
from deepseek_trainer.base_model.tokenizer_files import TOKENIZER
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_of, named

_SPECIAL_TOKENS: Final = "special_tokens_map.json"  # where older releases of transformers name the end of text
_END: Final = "eos_token"
_SLOW: Final = ("vocab.json", "merges.txt", "tokenizer.model", "spiece.model", "vocab.txt")
_MISTRAL: Final = "tekken.json"
_TIKTOKEN: Final = ".tiktoken"


def no_tokenizer(directory: Path) -> ConfigError:
    """The refusal of a model without tokenizer.json, with what it has instead."""
    names = sorted(path.name for path in directory.iterdir())
    slow = [name for name in names if name in (*_SLOW, _MISTRAL) or name.endswith(_TIKTOKEN)]
    instead = f": its tokenizer is in {first_of(slow, 5, named)}, which is not read" if slow else ""
    return ConfigError(f"{place(directory)} has no {TOKENIZER}{instead}", hint=_way_out(slow))


def with_end_of_text(source: Place, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's settings, with the end-of-text token of special_tokens_map.json where they name none."""
    if settings.get(_END) is not None or not source.has(_SPECIAL_TOKENS):
        return dict(settings)
    found = source.json(_SPECIAL_TOKENS).get(_END)
    return dict(settings) if found is None else {**settings, _END: found}


def _way_out(slow: list[str]) -> str:
    if any(name.endswith(_TIKTOKEN) or name == _MISTRAL for name in slow):
        return f"take {TOKENIZER} and tokenizer_config.json of the model's release for transformers"
    return (
        "AutoTokenizer.from_pretrained(path).save_pretrained(path) of transformers writes one, with tokenizer_config"
        ".json; or take both of the model's own release"
    )
