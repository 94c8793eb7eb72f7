"""Turns a conversation into tokens, and marks those that are learned: every answer and its end of turn.

A base model's chat template renders the conversation up to each border, before an answer and after it.  Each rendering
must begin with the one before: otherwise nobody could know where an answer begins.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NoReturn

from jinja2 import TemplateError

from deepseek_trainer.base_model.confined import confined
from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.tasks.language.conversation import ASSISTANT, SYSTEM, USER, Conversation

Span = tuple[list[int], bool]  # tokens, and whether they are learned
Section = tuple[Conversation, str]  # what is rendered at once, and what messages call it

QUESTION: Final = "### Question\n{prompt}\n\n### Answer\n"
SECONDS: Final = 20  # of computing for a batch, and a second more for each
CHARACTERS: Final = 20_000  # of it; templates that exist write a hundred times as much in a second
MEMORY: Final = 4 << 30  # [bytes] beyond what the process has
_MAX_SAID: Final = 400  # [characters] of a template's own words
_HINT: Final = "leave out what it does not take, often the system message, or use another base model"
_SYSTEM: Final = "### System\n{prompt}\n\n"


def sections(turns: Conversation, place: str = "the conversation") -> list[Section]:
    """What of a conversation is rendered, for `spans`: all that comes before each border."""
    return [(turns[:border], place) for border in _borders(turns)]


def spans(
    tokenizer: Any, turns: Conversation, texts: Sequence[str] | None = None, place: str = "the conversation"
) -> Iterator[Span]:
    """The tokens of `turns` in order.  Without a chat template, the begin of text is left to the caller.

    `texts` are those of its `sections`, if they are rendered already.  The first turns alone give the beginning of the
    tokens of all.  Raises ConfigError if the chat template refuses the conversation, which messages call `place`, or
    rewrites what it wrote before.
    """
    if tokenizer.chat_template is None:
        yield from _plain(tokenizer, turns)
        return
    given = [rendered(tokenizer, *section) for section in sections(turns, place)] if texts is None else texts
    yield from _templated(tokenizer, turns, given, place)


def all_rendered(tokenizer: Any, wanted: Sequence[Section]) -> list[str]:
    """What the chat template writes for each section.  One that takes for ever is ended, and refused by ConfigError."""
    if not wanted:
        return []
    seconds = SECONDS + sum(len(turn.content) for turns, _ in wanted for turn in turns) // CHARACTERS
    what = f"the base model's chat template, from {wanted[0][1]} on,"
    return confined(
        lambda: [rendered(tokenizer, *section) for section in wanted], what, seconds=seconds, memory=MEMORY, hint=_HINT
    )


def rendered(tokenizer: Any, turns: Conversation, place: str = "the conversation") -> str:
    """What the chat template writes; after a question it opens the answer."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    opens = turns[-1].role == USER
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=opens))
    except TemplateError as error:
        said = str(error)  # shown only if the template has these words: else they could be the record's
        is_own = 0 < len(said) <= _MAX_SAID and said in str(tokenizer.chat_template)
        raise _refused(place, (said if said.isprintable() else shown(said, _MAX_SAID)) if is_own else "") from None
    except MemoryError:
        raise
    except Exception as error:
        raise _refused(place, type(error).__name__) from None


def _refused(place: str, why: str) -> ConfigError:
    return ConfigError(f"{place}: the base model's chat template refuses it{why and f': {why}'}", hint=_HINT)


def encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    with understood("the tokenizer, on a text of the data,", quoting=False):
        found = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in found]


def _plain(tokenizer: Any, turns: Conversation) -> Iterator[Span]:
    opening = ""
    for turn in turns:
        if turn.role == ASSISTANT:
            yield [*encoded(tokenizer, [turn.content])[0], tokenizer.eos_token_id], True
            opening = ""
        else:
            opening += (_SYSTEM if turn.role == SYSTEM else QUESTION).format(prompt=turn.content)
            if turn.role == USER:
                yield encoded(tokenizer, [opening])[0], False


def _borders(turns: Conversation) -> list[int]:
    return [i for i, turn in enumerate(turns, 1) if turn.role != SYSTEM]


def _templated(tokenizer: Any, turns: Conversation, texts: Sequence[str], place: str) -> Iterator[Span]:
    before, ids = "", list[int]()
    for border, text, whole in zip(_borders(turns), texts, encoded(tokenizer, [*texts]), strict=True):
        if not text.startswith(before):
            _refuse_rewriting(place, border - 1)
        new = whole[len(ids) :]
        if whole[: len(ids)] != ids:  # a token spans the border: as in generation, the answer begins there
            new = encoded(tokenizer, [text[len(before) :]])[0]
        before, ids = text, ids + new
        yield from _answer(tokenizer, new) if turns[border - 1].role == ASSISTANT else [(new, False)]


def _refuse_rewriting(place: str, messages: int) -> NoReturn:
    raise ConfigError(
        f"{place}: the base model's chat template rewrites what it wrote for the first {messages} messages when the "
        "next one comes, so that the answers to be learned cannot be told apart",
        hint="give the base model a chat template that only appends, or use records with a prompt and a response",
    )


def _answer(tokenizer: Any, ids: list[int]) -> Iterator[Span]:
    """The answer is learned up to its end of turn.  White space that the template writes after that is not."""
    decode = tokenizer.backend_tokenizer.decode
    end = len(ids)
    while end and not decode([ids[end - 1]], skip_special_tokens=False).strip():
        end -= 1
    ends_turn = end and not decode([ids[end - 1]], skip_special_tokens=True)
    border = end if ends_turn else len(ids)
    yield ids[:border], True
    yield ids[border:], False
