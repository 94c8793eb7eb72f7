"""Turns records into tokens: which tokenizer, how a conversation is rendered, which tokens are learned.

A tokenizer comes with the base model, or is trained on the job's own data.  Prompts are rendered and
tokenised by `prompt_ids` alone, so that training, evaluation and answers see the same tokens.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import groupby, islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.base_model.patience import within
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.language.chat import (
    QUESTION,
    Section,
    Span,
    all_rendered,
    encoded,
    rendered,
    sections,
    spans,
)
from deepseek_trainer.tasks.language.conversation import ASSISTANT, USER, Conversation, Message, Question
from deepseek_trainer.tasks.language.packing import Document
from deepseek_trainer.tasks.language.records import Record

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"

_SECONDS: Final = 60  # for a batch, and a second more for each
_CHARACTERS: Final = 20_000  # of it: a core tokenises a hundred times as much in a second
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
    texts = [] if tokenizer.chat_template is None else [rendered(tokenizer, (Message(USER, prompt),))]
    return _prompt_ids(tokenizer, [prompt], texts)[0]


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text's opening, which is to be continued."""
    with understood("the tokenizer, on a text of the data,", quoting=False):
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
        texts = all_rendered(tokenizer, [section for record in batch for section in _sections(tokenizer, record)])
        characters = sum(len(text) for record in batch for text in record.texts()) + sum(map(len, texts))
        yield from within(
            _SECONDS + characters / _CHARACTERS,
            partial(_tokenised, tokenizer, batch, iter(texts)),
            f"the tokenizer, from {batch[0].place} on,",
            hint="take the tokenizer from the model's own release, or look at what is odd in these records",
        )


def _tokenised(tokenizer: Any, batch: list[Record], texts: Iterator[str]) -> list[Document]:
    """`texts` are those of the sections of the records, in order."""
    found: list[Document] = []
    for kind, records_of_kind in groupby(batch, lambda record: type(record.prompt)):
        tokenised = {type(None): _texts, str: _answers, tuple: _conversations}[kind]
        found += tokenised(tokenizer, list(records_of_kind), texts)
    return found


def _sections(tokenizer: Any, record: Record) -> list[Section]:
    """What the chat template has to render of a record."""
    if tokenizer.chat_template is None or record.prompt is None:
        return []
    if isinstance(record.prompt, str):
        return [((Message(USER, record.prompt),), record.place)]
    return sections(_turns(record), record.place)


def _turns(record: Record) -> Conversation:
    assert isinstance(record.prompt, tuple), "one kind of record at a time"
    return (*record.prompt, Message(ASSISTANT, record.text))


def _texts(tokenizer: Any, records: list[Record], _: Iterator[str]) -> Iterator[Document]:
    cut = [list(_pieces(record.text)) for record in records]
    tokens = iter(encoded(tokenizer, [part for text in cut for part in text]))
    for text in cut:
        ids = [*_begin(tokenizer), *(token for _ in text for token in next(tokens)), tokenizer.eos_token_id]
        yield Document(np.array(ids, np.uint32), np.ones(len(ids), np.bool_))


def _answers(tokenizer: Any, records: list[Record], texts: Iterator[str]) -> Iterator[Document]:
    asked = [str(record.prompt) for record in records]
    prompts = _prompt_ids(tokenizer, asked, [*islice(texts, len(asked))])
    answers = encoded(tokenizer, [record.text for record in records])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = np.array([*prompt, *answer, tokenizer.eos_token_id], np.uint32)
        yield Document(ids, np.arange(len(ids)) >= len(prompt))


def _conversations(tokenizer: Any, records: list[Record], texts: Iterator[str]) -> Iterator[Document]:
    for record in records:
        own = [*islice(texts, len(_sections(tokenizer, record)))]
        yield _document(list(_spans(tokenizer, _turns(record), own, record.place)), tokenizer.eos_token_id)


def _document(parts: list[Span], end: int) -> Document:
    """The document up to its last learned token, and an end of text unless that token is one."""
    while not parts[-1][1]:
        parts.pop()
    if parts[-1][0][-1:] != [end]:
        parts.append(([end], True))
    ids = np.array([token for tokens, _ in parts for token in tokens], np.uint32)
    return Document(ids, np.repeat([learned for _, learned in parts], [len(tokens) for tokens, _ in parts]))


def _spans(
    tokenizer: Any, turns: Conversation, texts: Sequence[str] | None = None, place: str = "the conversation"
) -> Iterator[Span]:
    if tokenizer.chat_template is None:
        yield _begin(tokenizer), False
    yield from spans(tokenizer, turns, texts, place)


def _prompt_ids(tokenizer: Any, prompts: list[str], texts: list[str]) -> list[list[int]]:
    """`texts` are what the chat template makes of them, if there is one."""
    if tokenizer.chat_template is None:
        begin = _begin(tokenizer)
        return [[*begin, *ids] for ids in encoded(tokenizer, [QUESTION.format(prompt=prompt) for prompt in prompts])]
    return encoded(tokenizer, texts)


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
