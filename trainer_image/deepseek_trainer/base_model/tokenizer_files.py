"""A tokenizer as files that plain transformers reads too, kept in a vault and never written beside it.

The files are read by name: nothing that a tokenizer's configuration says is imported or executed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.storage.vault import Vault

TOKENIZER: Final = "tokenizer.json"
SETTINGS: Final = "tokenizer_config.json"
NAMES: Final = (TOKENIZER, SETTINGS)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
_KEPT = (*_SPECIAL, "chat_template", "model_max_length", "clean_up_tokenization_spaces")


def load_tokenizer(directory: Path, vault: Vault) -> PreTrainedTokenizerFast:
    """The tokenizer that `save_tokenizer` or `model_source` left in `directory`."""
    return tokenizer_from({name: bytes(vault.read(directory / name)) for name in NAMES})


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, directory: Path, vault: Vault) -> None:
    for name, content in files_of(tokenizer).items():
        vault.write(directory / name, content)


def tokenizer_from(files: Mapping[str, bytes]) -> PreTrainedTokenizerFast:
    """A tokenizer from the content of its two files.  Raises ConfigError where they are malformed."""
    try:
        backend = Tokenizer.from_str(files[TOKENIZER].decode())
        settings = json.loads(files[SETTINGS])
        return PreTrainedTokenizerFast(tokenizer_object=backend, **kept_settings(settings))
    except ConfigError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ConfigError(f"the tokenizer cannot be read: {error}") from error


def files_of(tokenizer: PreTrainedTokenizerFast) -> dict[str, bytes]:
    """What `tokenizer_from` and `AutoTokenizer.from_pretrained` need."""
    settings: dict[str, Any] = {name: getattr(tokenizer, name) for name in _SPECIAL}
    settings |= {
        "chat_template": tokenizer.chat_template,
        "model_max_length": tokenizer.model_max_length,
        "clean_up_tokenization_spaces": tokenizer.clean_up_tokenization_spaces,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    present = {name: value for name, value in settings.items() if value is not None}
    return {
        TOKENIZER: tokenizer.backend_tokenizer.to_str().encode(),
        SETTINGS: json.dumps(present, indent=2, ensure_ascii=False).encode(),
    }


def kept_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What we use of a tokenizer_config.json; special tokens as plain strings.

    Raises ConfigError where the tokenizer asks for code of its own.
    """
    if "auto_map" in settings:
        raise ConfigError(
            "the tokenizer brings code of its own (auto_map), which is never run",
            hint="use a model that transformers knows by itself",
        )
    kept = {name: settings[name] for name in _KEPT if settings.get(name) is not None}
    return kept | {name: _content(kept[name]) for name in _SPECIAL if name in kept}


def _content(token: str | Mapping[str, Any]) -> str:
    return token if isinstance(token, str) else str(token["content"])
