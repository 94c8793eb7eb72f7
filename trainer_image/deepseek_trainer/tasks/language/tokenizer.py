"""Turns records into tokens: which tokenizer, how a conversation is rendered, which tokens are learned.

A tokenizer comes with the base model, or is trained on the job's own data.  Prompts are rendered and
tokenised by `prompt_ids` alone, so that training, evaluation and answers see the same tokens.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import groupby, islice
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.base_model.patience import within
from deepseek_trainer.contract.data import MultiTurn
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.language.chat import (
    Passage,
    Span,
    all_passages,
    encoded,
    end_of_turn,
    passages,
    plain_spans,
    question_parts,
    refuse_tools_in_plain_form,
    spans,
)
from deepseek_trainer.tasks.language.conversation import ASSISTANT, USER, Conversation, Message, Question
from deepseek_trainer.tasks.language.packing import Document
from deepseek_trainer.tasks.language.records import Record
from deepseek_trainer.tasks.language.writing import Talk, Writer, before

BEGIN: Final = "<|begin|>"
END: Final = "<|end|>"
PAD: Final = "<|pad|>"
_SAMPLES: Final = (("Who?", "They."), ("Who?", " They.\n\n"), ("Who?", "<think>\nHm.\n</think>\n\nThey."))
EACH: Final = MultiTurn.EACH_ANSWER

_WHAT: Final = "the tokenizer, or its chat template,"

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


@understood(_WHAT, quoting=False)
def pad_id(tokenizer: Any) -> int:
    """The token that fills rows.  It is neither learned nor attended to, so any token will do."""
    return int(end_id(tokenizer) if tokenizer.pad_token_id is None else tokenizer.pad_token_id)


def end_id(tokenizer: Any) -> int:
    """The token after which a text is at its end.  Raises ConfigError where a base model's tokenizer has none."""
    if (found := tokenizer.eos_token_id) is None:
        raise ConfigError("the tokenizer has no end-of-text token", hint="set eos_token in tokenizer_config.json")
    return int(found)


@understood(_WHAT, quoting=False)
def id_limit(tokenizer: Any) -> int:
    """One more than the highest token id."""
    return int(max(tokenizer.get_vocab().values())) + 1


@understood(_WHAT, quoting=False)
def prompt_ids(tokenizer: Any, prompt: Question, tools: tuple[str, ...] = ()) -> list[int]:
    """The tokens with which a server asks for an answer to `prompt`."""
    turns = _asked(prompt)
    if tokenizer.chat_template is None:
        (parts,) = plain_spans(tokenizer, [turns])
        return [*_begin(tokenizer), *(token for ids, _ in parts for token in ids)]
    asked = question_parts(Writer(tokenizer), Talk(turns, tools=tools))
    (parts,) = spans(tokenizer, [[(text, False) for text in asked]])
    return [token for ids, _ in parts for token in ids]


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text's opening, which is to be continued."""
    with understood("the tokenizer, on a text of the data,", quoting=False):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def stop_ids(tokenizer: Any) -> tuple[int, ...]:
    """The tokens at which an answer ends: the end of text, and what the chat template ends a turn with.

    Where it ends none, the token with which it opens the next turn.
    """
    found = {tokenizer.eos_token_id}
    if tokenizer.chat_template is not None:
        with suppress(ConfigError):  # it takes no such conversation: then nothing is known
            found |= _turn_ends(tokenizer)
    return tuple(sorted(found))


@understood(_WHAT, quoting=False)
def _turn_ends(tokenizer: Any) -> set[int]:
    talk = Talk((Message(USER, "Who?"), Message(ASSISTANT, "They."), Message(USER, "Why?")))
    writer = Writer(tokenizer)
    (passage,) = passages(writer, before(talk, 2), EACH)
    (parts,) = spans(tokenizer, [passage])
    *_, answer = [ids for ids, learned in parts if learned]
    if end := end_of_turn(tokenizer, answer):
        return {answer[end - 1]}
    whole, longer = "".join(text for text, _ in passage), writer.asked(talk)
    following = encoded(tokenizer, [longer.removeprefix(whole)])[0][:1] if longer.startswith(whole) else []
    return {token for token in following if end_of_turn(tokenizer, [token])}


def writes_plainly(tokenizer: Any) -> bool:
    """Whether an answer and an end of text are all that is learned of a prompt and a response."""
    if tokenizer.chat_template is None:
        return True
    try:
        found = list(documents(tokenizer, [Record(asked, said, "a sample", 0) for asked, said in _SAMPLES]))
    except ConfigError:
        return False
    return all(
        document.tokens.tolist()
        == [*prompt_ids(tokenizer, asked), *encoded(tokenizer, [said])[0], tokenizer.eos_token_id]
        for document, (asked, said) in zip(found, _SAMPLES, strict=True)
    )


@understood(_WHAT, quoting=False)
def answered(tokenizer: Any, prompt: Question, answer: str, tools: tuple[str, ...] = ()) -> Document:
    """What would be learned of a record with this prompt and this answer."""
    talk = Talk((*_asked(prompt), Message(ASSISTANT, answer)), tools=tools)
    if tokenizer.chat_template is None:
        ((document,),) = _plain(tokenizer, [talk], MultiTurn.LAST_ANSWER)
    else:
        ((document,),) = _templated(tokenizer, [passages(Writer(tokenizer), talk, MultiTurn.LAST_ANSWER)])
    return document


@understood(_WHAT, quoting=False)
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


def documents(tokenizer: Any, records: Iterable[Record], multi_turn: MultiTurn = EACH) -> Iterator[Document]:
    """The documents of each record, in order."""
    for documents_of_record in documents_by_record(tokenizer, records, multi_turn):
        yield from documents_of_record


def documents_by_record(
    tokenizer: Any, records: Iterable[Record], multi_turn: MultiTurn = EACH
) -> Iterator[list[Document]]:
    """What each record becomes: one document, or one for each answer where the chat template rewrites earlier turns.

    Text: every token is learned, and an end of text follows.  Instruction: every answer is learned with its end of
    turn, and the end of text after the last; see `chat`.  A record without an answer to be learned has no document.
    Raises ConfigError for a tokenizer without an end-of-text token.
    """
    end_id(tokenizer)
    for batch in _batches(records):
        with understood(f"{_WHAT} from {batch[0].place} on,", quoting=False):
            found = _documents_of(tokenizer, batch, multi_turn)
        yield from found


def _documents_of(tokenizer: Any, batch: list[Record], multi_turn: MultiTurn) -> list[list[Document]]:
    talks = [_talk(record) for record in batch if record.prompt is not None]
    given = [] if tokenizer.chat_template is None else all_passages(tokenizer, talks, multi_turn)
    characters = sum(len(text) for record in batch for text in record.texts())
    characters += sum(len(text) for passages in given for passage in passages for text, _ in passage)
    return within(
        _SECONDS + characters / _CHARACTERS,
        partial(_tokenised, tokenizer, batch, iter(given), multi_turn),
        f"the tokenizer, from {batch[0].place} on,",
        hint="take the tokenizer from the model's own release, or look at what is odd in these records",
    )


def _tokenised(
    tokenizer: Any, batch: list[Record], given: Iterator[list[Passage]], multi_turn: MultiTurn
) -> list[list[Document]]:
    """`given` are the passages of the records that have a prompt, in order, if there is a chat template."""
    found: list[list[Document]] = []
    for is_text, group in groupby(batch, lambda record: record.prompt is None):
        records = list(group)
        if is_text:
            found += ([document] for document in _texts(tokenizer, records))
        elif tokenizer.chat_template is None:
            found += _plain(tokenizer, [_talk(record) for record in records], multi_turn)
        else:
            found += _templated(tokenizer, [*islice(given, len(records))])
    return found


def _talk(record: Record) -> Talk:
    return Talk(record.conversation, record.place, record.tools)


def _asked(question: Question) -> Conversation:
    return (Message(USER, question),) if isinstance(question, str) else question


def _texts(tokenizer: Any, records: list[Record]) -> Iterator[Document]:
    cut = [list(_pieces(record.text)) for record in records]
    tokens = iter(encoded(tokenizer, [part for text in cut for part in text]))
    for text in cut:
        ids = [*_begin(tokenizer), *(token for _ in text for token in next(tokens)), tokenizer.eos_token_id]
        yield Document(np.array(ids, np.uint32), np.ones(len(ids), np.bool_))


def _templated(tokenizer: Any, given: list[list[Passage]]) -> Iterator[list[Document]]:
    found = spans(tokenizer, [passage for passages_of_record in given for passage in passages_of_record])
    for passages_of_record in given:
        yield [_document(parts, tokenizer.eos_token_id) for parts in islice(found, len(passages_of_record))]


def _plain(tokenizer: Any, talks: list[Talk], multi_turn: MultiTurn) -> Iterator[list[Document]]:
    for talk in talks:
        refuse_tools_in_plain_form(talk)
    begin = _begin(tokenizer)
    for parts in plain_spans(tokenizer, [talk.turns for talk in talks], multi_turn):
        has_answer = any(learned for _, learned in parts)
        yield [_document([(begin, False), *parts], tokenizer.eos_token_id)] if has_answer else []


def _document(parts: list[Span], end: int) -> Document:
    """The document up to its last learned token, and an end of text unless that token is one."""
    while not parts[-1][1]:
        parts.pop()
    if parts[-1][0][-1:] != [end]:
        parts.append(([end], True))
    ids = np.array([token for tokens, _ in parts for token in tokens], np.uint32)
    return Document(ids, np.repeat([learned for _, learned in parts], [len(tokens) for tokens, _ in parts]))


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
