"""Tries a base model's tokenizer and chat template before the run: whether they work, within time and memory."""

import logging
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.base_model.bounds import WHERE, size
from deepseek_trainer.base_model.confined import confined
from deepseek_trainer.base_model.guard import cause, place
from deepseek_trainer.base_model.tokenizer_files import SETTINGS, TOKENIZER, tokenizer_from
from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown

log = logging.getLogger(__name__)

SECONDS: Final = 10  # of computing, and one more for each MiB: what exists takes a third of a second for it
_BYTES_PER_SECOND: Final = 1 << 20
MEMORY: Final = 2 << 30  # [bytes] beyond what the process has
_HINT: Final = "take tokenizer and chat template from the model's own release"
_RUN: Final = 100  # characters of a kind in a row, at which a pattern that backtracks takes for ever
_TEXTS: Final = (
    "The pump-101 runs at 3.5 bar, isn't it?\n\n\tfor (i = 0; i < 10; i++) { größe += 2 * x[i]; }\r\n",
    "盐窖在东翼下面。 😀",
    " ".join(character * _RUN + "!" for character in string.printable),
    (string.ascii_letters + string.digits) * 4,
)
_TURNS: Final = (("system", "Be short."), ("user", "Where is it?"), ("assistant", "There."), ("user", "And now?"))
_SECTIONS: Final = ((1, 2), (1, 3), (1, 4), (0, 2), (0, 3), (0, 4))  # of these turns: what is rendered


def refuse_unfit_tokenizer(files: Mapping[str, bytes], config: Mapping[str, Any], source: Path) -> None:
    """Raises ConfigError where the tokenizer does not work, or knows more tokens than the model has embeddings."""
    what = f"the tokenizer of {place(source)}, or its chat template,"
    seconds = SECONDS + sum(map(len, files.values())) // _BYTES_PER_SECOND
    embeddings, named = size(config, "vocab_size"), config.get("eos_token_id")
    _refuse_padding_beyond(config.get("pad_token_id"), embeddings)
    ends = [token for token in (named if isinstance(named, list) else [named]) if token is not None]
    highest, token = confined(lambda: _tried(files, ends), what, seconds=seconds, memory=MEMORY, hint=_HINT)
    if highest >= embeddings:
        raise ConfigError(
            f"the tokenizer knows the token {highest}, the model has {embeddings} embeddings: {shown(token)} has none",
            hint="take tokenizer and weights from the same release of the model; after tokens were added, "
            "model.resize_token_embeddings(len(tokenizer)) and save_pretrained of transformers make room for them",
        )


def _tried(files: Mapping[str, bytes], ends: list[int]) -> tuple[int, str]:
    """The highest token and its text.  `ends`: the tokens that config.json says texts end with."""
    tokenizer = tokenizer_from(files)
    if not (vocabulary := tokenizer.get_vocab()):
        raise ConfigError("the base model's tokenizer has no tokens", hint=_HINT)
    if tokenizer.eos_token is None:
        raise _endless(tokenizer, ends)
    _refuse_foreign_end(files, tokenizer.eos_token)
    backend = tokenizer.backend_tokenizer
    for found in backend.encode_batch_fast([*_TEXTS], add_special_tokens=False):
        backend.decode(found.ids)
    tokenizer("", add_special_tokens=True)
    if tokenizer.chat_template is not None:
        _try_template(tokenizer)
    highest = max(vocabulary, key=vocabulary.__getitem__)
    return int(vocabulary[highest]), highest


def _refuse_padding_beyond(token: int | None, embeddings: int) -> None:
    if token is not None and token >= embeddings:
        raise ConfigError(
            f"{WHERE} has pad_token_id {token}, the model has {embeddings} embeddings",
            hint="set it to null: rows are packed, not padded",
        )


def _refuse_foreign_end(files: Mapping[str, bytes], end: str) -> None:
    """transformers would make a new token of it, of which the model knows nothing."""
    if Tokenizer.from_str(files[TOKENIZER].decode()).token_to_id(end) is None:
        raise ConfigError(
            f"{SETTINGS} has eos_token {shown(end)}, which {TOKENIZER} does not know",
            hint=f"take both from the same release of the model, or name the token of {TOKENIZER} that ends a text",
        )


def _endless(tokenizer: PreTrainedTokenizerFast, ends: list[int]) -> ConfigError:
    """The refusal of a tokenizer without an end of text, after which a model would never learn to stop."""
    texts = [token for end in ends if end >= 0 and (token := tokenizer.backend_tokenizer.id_to_token(end)) is not None]
    by_config = f"; config.json ends texts with the token {ends[0]}" if ends else ""
    wanted = f'"eos_token": {json_text(texts[0])}' if texts else "the token with which its texts end as eos_token"
    return ConfigError(
        f"the base model's tokenizer has no end-of-text token (eos_token){by_config}",
        hint=f"write {wanted[:200]} into tokenizer_config.json",
    )


def _try_template(tokenizer: PreTrainedTokenizerFast) -> None:
    """Only time and memory count: a template may refuse a conversation, which is told where a record is refused."""
    for first, end in _SECTIONS:
        messages = [{"role": role, "content": content} for role, content in _TURNS[first:end]]
        opens = messages[-1]["role"] == "user"
        try:
            tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens)
        except MemoryError:
            raise
        except Exception as error:
            log.debug("the chat template refuses a sample: %s", cause(error))
