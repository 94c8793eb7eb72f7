"""A tokenizer as files that plain transformers reads too, kept in a vault and never written beside it.

The files are read by name: nothing that a tokenizer's configuration says is imported or executed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import parsed, shown
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
    with understood("the tokenizer"):
        backend = Tokenizer.from_str(files[TOKENIZER].decode())
        backend.no_truncation()  # the job's own rules decide how long a row is
        backend.no_padding()
        settings = parsed(files[SETTINGS])
        return PreTrainedTokenizerFast(tokenizer_object=backend, **kept_settings(settings))


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
        SETTINGS: json_text(present, indent=2, ensure_ascii=False).encode(),
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
    _refuse_other_kinds(kept)
    return kept | {name: _content(name, kept[name]) for name in _SPECIAL if name in kept}


def _refuse_other_kinds(kept: Mapping[str, Any]) -> None:
    template, longest = kept.get("chat_template", ""), kept.get("model_max_length", 1)
    if not isinstance(template, str | list):
        raise _refused("chat_template", template, "a string, or a list of named ones")
    if isinstance(longest, bool) or not isinstance(longest, int | float) or longest < 1:
        raise _refused("model_max_length", longest, "a number above 0")
    if not isinstance(kept.get("clean_up_tokenization_spaces", False), bool):
        raise _refused("clean_up_tokenization_spaces", kept["clean_up_tokenization_spaces"], "true or false")


def _content(name: str, token: Any) -> str:
    content = token.get("content") if isinstance(token, Mapping) else token
    if not isinstance(content, str):
        raise _refused(name, token, "a string, or an object with its content")
    return content


def _refused(name: str, value: object, rule: str) -> ConfigError:
    return ConfigError(
        f"the base model's {SETTINGS} has {name} {shown(value)}: it must be {rule}",
        hint="take it from the model's own release",
    )
