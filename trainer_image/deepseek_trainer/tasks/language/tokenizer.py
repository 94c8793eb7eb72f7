"""Turns records into tokens: which tokenizer, how a conversation is rendered, which tokens are learned.

A tokenizer comes with the base model, or is trained on the job's own data.  Prompts are rendered and
tokenised by `prompt_ids` alone, so that training, evaluation and answers see the same tokens.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.language.chat import QUESTION, Span, encoded, rendered, spans
from deepseek_trainer.tasks.language.conversation import ASSISTANT, USER, Conversation, Message, Question
from deepseek_trainer.tasks.language.packing import Document
from deepseek_trainer.tasks.language.records import Record

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"

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
    """The token that fills rows.  It is neither learned nor attended to, so any token will do."""
    return int(tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def id_limit(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


def prompt_ids(tokenizer: Any, prompt: Question) -> list[int]:
    """The tokens that come before an answer to `prompt`."""
    if isinstance(prompt, tuple):
        return [token for ids, _ in _spans(tokenizer, prompt) for token in ids]
    return _prompt_ids(tokenizer, [prompt])[0]


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text's opening, which is to be continued."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def response_ids(tokenizer: Any, response: str) -> list[int]:
    """The tokens that are learned of a record with this response: its own and the end of text."""
    return [*encoded(tokenizer, [response])[0], tokenizer.eos_token_id]


def token_bytes(tokenizer: Any) -> npt.NDArray[np.int64] | None:
    """How many UTF-8 bytes of text each token stands for, by id: 0 for a special token, 1 for a third of a character.

    Exact for a byte-level tokenizer, after its own normalisation, such as NFC.  None for any other tokenizer, and for
    one that puts a space before every text.
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

    Text: every token is learned, and an end of text follows.  Instruction: the response and the end of text
    after it are learned; of a conversation every answer with its end of turn, and the end of text after the last.
    Raises ConfigError for a tokenizer without an end-of-text token.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            "the base model's tokenizer has no end-of-text token", hint="set eos_token in tokenizer_config.json"
        )
    for batch in _batches(records):
        for kind, records_of_kind in groupby(batch, lambda record: type(record.prompt)):
            tokenised = {type(None): _texts, str: _answers, tuple: _conversations}[kind]
            yield from tokenised(tokenizer, list(records_of_kind))


def _texts(tokenizer: Any, records: list[Record]) -> Iterator[Document]:
    cut = [list(_pieces(record.text)) for record in records]
    tokens = iter(encoded(tokenizer, [part for text in cut for part in text]))
    for text in cut:
        ids = [*_begin(tokenizer), *(token for _ in text for token in next(tokens)), tokenizer.eos_token_id]
        yield Document(np.array(ids, np.uint32), np.ones(len(ids), np.bool_))


def _answers(tokenizer: Any, records: list[Record]) -> Iterator[Document]:
    prompts = _prompt_ids(tokenizer, [str(record.prompt) for record in records])
    answers = encoded(tokenizer, [record.text for record in records])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = np.array([*prompt, *answer, tokenizer.eos_token_id], np.uint32)
        yield Document(ids, np.arange(len(ids)) >= len(prompt))


def _conversations(tokenizer: Any, records: list[Record]) -> Iterator[Document]:
    for record in records:
        assert isinstance(record.prompt, tuple), "one kind of record at a time"
        turns = (*record.prompt, Message(ASSISTANT, record.text))
        yield _document(list(_spans(tokenizer, turns, record.place)), tokenizer.eos_token_id)


def _document(parts: list[Span], end: int) -> Document:
    """The document up to its last learned token, and an end of text unless that token is one."""
    while not parts[-1][1]:
        parts.pop()
    if parts[-1][0][-1:] != [end]:
        parts.append(([end], True))
    ids = np.array([token for tokens, _ in parts for token in tokens], np.uint32)
    return Document(ids, np.repeat([learned for _, learned in parts], [len(tokens) for tokens, _ in parts]))


def _spans(tokenizer: Any, turns: Conversation, place: str = "the conversation") -> Iterator[Span]:
    if tokenizer.chat_template is None:
        yield _begin(tokenizer), False
    yield from spans(tokenizer, turns, place)


def _prompt_ids(tokenizer: Any, prompts: list[str]) -> list[list[int]]:
    if tokenizer.chat_template is None:
        begin = _begin(tokenizer)
        return [[*begin, *ids] for ids in encoded(tokenizer, [QUESTION.format(prompt=prompt) for prompt in prompts])]
    return encoded(tokenizer, [rendered(tokenizer, (Message(USER, prompt),)) for prompt in prompts])


def _begin(tokenizer: Any) -> list[int]:
    """What this tokenizer puts before a text: its begin-of-text token, or nothing."""
    if tokenizer.bos_token == BEGIN:
        return [tokenizer.bos_token_id]
    first = tokenizer("", add_special_tokens=True)["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += sum(map(len, record.texts()))
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
