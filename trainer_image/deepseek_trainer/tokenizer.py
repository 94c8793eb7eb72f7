"""From records to tokens: which tokenizer, how a conversation is rendered, which tokens are learned.

A tokenizer comes with the base model, or is trained on the job's own data.  Prompts are rendered and
tokenised by `prompt_ids` alone, so that training, evaluation and answers see the same tokens.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.packing import Document
from deepseek_trainer.sources import Record

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"

_QUESTION: Final = "### Question\n{prompt}\n\n### Answer\n"
_BATCH_CHARACTERS: Final = 1 << 20  # tokenised at once, on all cores
_PIECE_CHARACTERS: Final = 1 << 16  # longer texts are cut, to be tokenised in parallel
# Every pre-tokeniser in use cuts after a lone line end anyway, so a cut here changes no token.
_CUT = re.compile(r"(?<=\S)\n(?=\S)")


def trained_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` tokens: fewer if the texts are too small for more.

    The same texts in the same order give the same tokenizer.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BEGIN, END, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((piece for text in texts for piece in _pieces(text)), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BEGIN, eos_token=END, pad_token=PAD)


def pad_id(tokenizer: Any) -> int:
    """The token that fills rows; it is never learned nor attended to, so that any will do."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def id_limit(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def prompt_ids(tokenizer: Any, prompt: str) -> list[int]:
    """All that comes before the first token of an answer to `prompt`."""
    return _prompt_ids(tokenizer, [prompt])[0]


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The opening of a text, to be continued."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def response_ids(tokenizer: Any, response: str) -> list[int]:
    """All that is learned of a record with this response: its tokens and the end of text."""
    return [*_encoded(tokenizer, [response])[0], tokenizer.eos_token_id]


def token_bytes(tokenizer: Any) -> npt.NDArray[np.int64] | None:
    """UTF-8 bytes of text that each token stands for, by id: 0 for a special token, 1 for a third of a character.

    Exact for a byte-level tokenizer; its own normalisation, such as NFC, comes before the count.  None for any
    other, and for one that puts a space before every text.
    """
    backend = tokenizer.backend_tokenizer
    spaced = backend.pre_tokenizer and b'"add_prefix_space":true' in backend.pre_tokenizer.__getstate__()
    if spaced or not isinstance(backend.decoder, decoders.ByteLevel):
        return None
    sizes = np.zeros(id_limit(tokenizer), np.int64)
    for token, token_id in tokenizer.get_vocab().items():
        sizes[token_id] = len(token)  # in the byte-level alphabet a character is a byte
    for token_id, added in tokenizer.added_tokens_decoder.items():
        sizes[token_id] = 0 if added.special else len(added.content.encode())
    return sizes


def documents(tokenizer: Any, records: Iterable[Record]) -> Iterator[Document]:
    """One document per record, in order.

    Text: every token is learned, and an end of text follows.  Instruction: the response and the end of
    text after it are learned.  Raises ConfigError for a tokenizer without an end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the base model's tokenizer has no end-of-text token", hint="set eos_token in tokenizer_config.json"
        )
    for batch in _batches(records):
        if batch[0].prompt is None:
            yield from _texts(tokenizer, [record.text for record in batch])
        else:
            yield from _answers(tokenizer, batch)


def _texts(tokenizer: Any, texts: list[str]) -> Iterator[Document]:
    pieces = [list(_pieces(text)) for text in texts]
    encoded = iter(_encoded(tokenizer, [piece for text in pieces for piece in text]))
    for text in pieces:
        ids = [*_begin(tokenizer), *(token for _ in text for token in next(encoded)), tokenizer.eos_token_id]
        yield Document(np.array(ids, np.uint32), np.ones(len(ids), np.bool_))


def _answers(tokenizer: Any, records: list[Record]) -> Iterator[Document]:
    prompts = _prompt_ids(tokenizer, [record.prompt or "" for record in records])
    answers = _encoded(tokenizer, [record.text for record in records])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = np.array([*prompt, *answer, tokenizer.eos_token_id], np.uint32)
        yield Document(ids, np.arange(len(ids)) >= len(prompt))


def _prompt_ids(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    if tokenizer.chat_template is None:
        begin = _begin(tokenizer)
        return [[*begin, *ids] for ids in _encoded(tokenizer, [_QUESTION.format(prompt=prompt) for prompt in prompts])]
    return _encoded(tokenizer, [_chat(tokenizer, prompt) for prompt in prompts])


def _chat(tokenizer: Any, prompt: str) -> str:
    messages = [{"role": "user", "content": prompt}]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _begin(tokenizer: Any) -> list[int]:
    """What this tokenizer puts before a text: its begin-of-text token, or nothing."""
    if tokenizer.bos_token == BEGIN:
        return [tokenizer.bos_token_id]
    first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def _encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)]


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += len(record.text) + len(record.prompt or "")
        if characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while cut := _CUT.search(text, start + _PIECE_CHARACTERS):
        yield text[start : cut.end()]
        start = cut.end()
    yield text[start:]
