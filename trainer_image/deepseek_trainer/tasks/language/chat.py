"""Turns a conversation into texts of which some parts are learned: every answer and its end of turn.

The rule.  An answer is learned as the chat template writes it in the conversation that ends with it, and its prompt is
what a server sends to have it: the turns before, and the opening of an answer that the template adds.

- The answer begins where that prompt ends.
- Where the template opens an answer by more than it writes before one (`<think>`, and the record has no thought), the
  answer begins where both part: what is learned is still what the template writes, and nothing stays open.
- Where the template writes no thoughts, but opens them, the record's thought goes in there and is closed.
- Where nothing but the next turn's opening ends an answer (GLM-4), the first token of that is learned with it.
- Where it writes a question otherwise once it is answered, the answer follows the question as it is asked.

If each text begins with the one before, a conversation is one text with all its answers.  Else the template rewrites
earlier turns, and each answer gets a text of its own.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Final

from deepseek_trainer.base_model.confined import confined
from deepseek_trainer.base_model.guard import understood
from deepseek_trainer.contract.data import MultiTurn
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.tasks.language.conversation import ASSISTANT, SYSTEM, USER, Conversation, Message
from deepseek_trainer.tasks.language.writing import Talk, Writer, answers, before, refuse_malformed

Span = tuple[list[int], bool]  # tokens, and whether they are learned
Part = tuple[str, bool]  # text, and whether it is learned
Passage = list[Part]  # what becomes one document

QUESTION: Final = "### Question\n{prompt}\n\n### Answer\n"
SECONDS: Final = 20  # of computing for a batch, and a second more for each
CHARACTERS: Final = 20_000  # of it; templates that exist write a hundred times as much in a second
MEMORY: Final = 4 << 30  # [bytes] beyond what the process has
_HINT: Final = "use another base model, or bring a template by model.chatTemplate"
_SYSTEM: Final = "### System\n{prompt}\n\n"
_OPENED: Final = re.compile(r"<think>(\s*)$")
_CLOSE: Final = "</think>"
_THOUGHT: Final = re.compile(rf"(?:\s*<think>)?(.*?){_CLOSE}(.*)", re.DOTALL)  # and what is said after it
_NO_THOUGHT: Final = re.compile(r"^\s*(<think>\s*)?</think>\s*")
_OPENING: Final = 256  # [characters] at most, between a question and its answer's own text


@dataclass(frozen=True, slots=True)
class Exchange:
    """An answer with its end of turn, and all that comes before it."""

    asked: str
    answer: str
    is_learned: bool = True

    @property
    def whole(self) -> str:
        return self.asked + self.answer


def all_passages(tokenizer: Any, talks: Sequence[Talk], multi_turn: MultiTurn) -> list[list[Passage]]:
    """The passages of each conversation.  A chat template that takes for ever is ended, and refused by ConfigError."""
    if not talks:
        return []
    seconds = SECONDS + sum(talk.size() * len(answers(talk.turns)) for talk in talks) // CHARACTERS
    what = f"the chat template, from {talks[0].place} on,"
    writer = Writer(tokenizer)
    return confined(
        lambda: [passages(writer, talk, multi_turn) for talk in talks],
        what,
        seconds=seconds,
        memory=MEMORY,
        hint=_HINT,
        quoting=False,
    )


def with_template(tokenizer: Any, template: str | None) -> Any:
    """The tokenizer with the job's own chat template, if it has one.  Raises ConfigError where that is malformed."""
    if template is not None:
        tokenizer.chat_template = template
        confined(lambda: refuse_malformed(tokenizer), "model.chatTemplate", seconds=SECONDS, memory=MEMORY, hint=_HINT)
    return tokenizer


def passages(writer: Writer, talk: Talk, multi_turn: MultiTurn) -> list[Passage]:
    """What is learned of a conversation, as its chat template writes it; none if it has no answer to be learned.

    Raises ConfigError if the template refuses it, or leaves out something of it.
    """
    writer.refuse_lossy(talk)
    exchanges = [_exchange(writer, before(talk, i + 1)) for i in answers(talk.turns)]
    while exchanges and not exchanges[-1].is_learned:
        exchanges.pop()
    if not exchanges:
        return []
    if multi_turn is MultiTurn.LAST_ANSWER:
        exchanges = [replace(each, is_learned=False) for each in exchanges[:-1]] + exchanges[-1:]
    if _appends([each.whole for each in exchanges], [each.asked for each in exchanges]):
        return [[*_joined(exchanges)]]
    return [[(each.asked, False), (each.answer, True)] for each in exchanges if each.is_learned]


def question_parts(writer: Writer, talk: Talk) -> list[str]:
    """The text that asks for an answer, cut where `passages` cuts it, so that both have the same tokens."""
    asked = writer.asked(talk)
    exchanges = [_exchange(writer, before(talk, i + 1)) for i in answers(talk.turns)]
    if not _appends([each.whole for each in exchanges], [*(each.asked for each in exchanges), asked]):
        return [asked]
    last = exchanges[-1].whole if exchanges else ""
    return [*(text for text, _ in _joined(exchanges)), asked[len(last) :]]


def _appends(wholes: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether each text that asks begins with the answered one before."""
    return all(later.startswith(whole) for whole, later in zip(wholes, asked[1:], strict=False))


def _joined(exchanges: Sequence[Exchange]) -> Iterator[Part]:
    done = 0
    for each in exchanges:
        yield each.asked[done:], False
        yield each.answer, each.is_learned
        done = len(each.whole)


def _exchange(writer: Writer, talk: Talk) -> Exchange:
    """The last answer of `talk`."""
    *_, last = talk.turns
    asked, whole = writer.asked(before(talk, -1)), writer.whole(talk)
    found = _parted(writer, talk, asked, whole)
    if not last.is_learned:
        return replace(found, is_learned=False)
    if _CLOSE in last.content and _said(last) not in found.answer:
        raise ConfigError(
            f"{talk.place}: the chat template does not write all of message {len(talk.turns)}, "
            f"which has {_CLOSE} more than once",
            hint="leave one, or bring a template that writes all by model.chatTemplate",
        )
    return found if _has_thought(found, last, asked) else _with_thought(writer, talk, found, asked, thought_of(last))


def _has_thought(found: Exchange, last: Message, asked: str) -> bool:
    """Whether the record's thought is written before what is said, or there is none.

    An empty one must be closed where the prompt opens it.
    """
    if not (thought := thought_of(last)):
        return not (_CLOSE in last.content and _OPENED.search(asked)) or _CLOSE in found.answer
    said = _said(last)
    return thought in (found.answer.rpartition(said)[0] if said else found.answer)


def _said(message: Message) -> str:
    """The content after its thought."""
    found = _THOUGHT.match(message.content)
    return (found[2] if found else message.content).strip()


def _parted(writer: Writer, talk: Talk, asked: str, whole: str) -> Exchange:
    if whole.startswith(asked):
        return Exchange(asked, whole[len(asked) :])
    own = _before_own_text(writer, talk, whole)
    shared = _common(asked, whole)
    if shared >= _common(writer.whole(before(talk, -1)), asked):  # only the opening of the answer differs
        start = min(own, shared)
        return Exchange(whole[:start], whole[start:])
    ends = range(max(0, own - _OPENING), own + 1)
    end = max(ends, key=lambda end: (_common(_backwards(asked), _backwards(whole[:end])), end))
    if end and whole[end - 1] == asked[-1:]:
        return Exchange(asked, whole[end:])
    raise ConfigError(
        f"{talk.place}: the chat template writes the question otherwise once it is answered, so that the answer to be "
        "learned cannot be told apart",
        hint=_HINT,
    )


def _before_own_text(writer: Writer, talk: Talk, whole: str) -> int:
    """Where what `whole` says of the last answer begins, seen by another answer."""
    *others, last = talk.turns
    firsts = {last.content.strip()[:1], thought_of(last)[:1], "<"}
    other = next(letter for letter in "abcd" if letter not in firsts)
    return _common(whole, writer.whole(replace(talk, turns=(*others, Message(ASSISTANT, other)))))


def _common(one: str, other: str) -> int:
    """The length of what both begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def _backwards(text: str) -> str:
    return text[: -_OPENING - 1 : -1]


def thought_of(message: Message) -> str:
    """What the assistant thought, from where the record has it: by itself, or before what it said.

    Some data leave out the `<think>` that the prompt ends with.
    """
    found = _THOUGHT.match(message.content)
    return message.reasoning.strip() or (found[1].strip() if found else "")


def _with_thought(writer: Writer, talk: Talk, found: Exchange, asked: str, thought: str) -> Exchange:
    """The answer after its thought, where the template opens one but writes none."""
    for opening in (asked, writer.asked(before(talk, -1), thinking=True, enable_thinking=True)):
        if opened := _OPENED.search(opening):
            close = "\n</think>\n\n" if "\n" in opened[1] else "</think>"
            return Exchange(opening, f"{thought}{close}{_NO_THOUGHT.sub('', found.answer, count=1).lstrip()}")
    raise ConfigError(
        f"{talk.place}: the chat template does not write the reasoning of message {len(talk.turns)}",
        hint="put it into the content as <think>...</think>, bring a template that reads reasoning_content by "
        "model.chatTemplate, or leave it out",
    )


def opens_thoughts_only(tokenizer: Any) -> bool:
    """Whether the chat template opens a thought for an answer, and writes none for an answer that has none."""
    if tokenizer.chat_template is None:
        return False
    talk, writer = Talk((Message(USER, "Who?"), Message(ASSISTANT, "They."))), Writer(tokenizer)
    try:
        asked, found = writer.asked(before(talk, 1)), _exchange(writer, talk)
    except ConfigError:  # it takes no such conversation
        return False
    return _OPENED.search(asked) is not None and found.asked != asked


def encoded(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    with understood("the tokenizer, on a text of the data,", quoting=False):
        found = tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [encoding.ids for encoding in found]


def spans(tokenizer: Any, found: Sequence[Passage]) -> Iterator[list[Span]]:
    """The tokens of each passage.  Its first parts alone give the beginning of the tokens of all."""
    wholes = iter(encoded(tokenizer, [whole for passage in found for whole in accumulate(text for text, _ in passage)]))
    for passage in found:
        yield list(_spans(tokenizer, passage, wholes))


def _spans(tokenizer: Any, passage: Passage, wholes: Iterator[list[int]]) -> Iterator[Span]:
    ids = list[int]()
    is_open = False  # the answer before has no end of turn of its own
    for text, learned in passage:
        whole = next(wholes)
        new = whole[len(ids) :]
        if whole[: len(ids)] != ids:  # a token spans the border: as in generation, the answer begins there
            new = encoded(tokenizer, [text])[0]
        ids += new
        yield from _answer(tokenizer, new) if learned else _between(tokenizer, new, is_open)
        is_open = learned and end_of_turn(tokenizer, new) is None


def _between(tokenizer: Any, ids: list[int], is_open: bool) -> Iterator[Span]:
    """What is not learned, but for the special token that opens the next turn, where nothing else ends the answer."""
    ends = 1 if is_open and end_of_turn(tokenizer, ids[:1]) else 0
    yield ids[:ends], True
    yield ids[ends:], False


def plain_spans(
    tokenizer: Any, conversations: Sequence[Conversation], multi_turn: MultiTurn = MultiTurn.EACH_ANSWER
) -> Iterator[list[Span]]:
    """The tokens of each conversation without a chat template.  The begin of text is left to the caller."""
    plain = [list(_plain(turns, multi_turn)) for turns in conversations]
    tokens = iter(encoded(tokenizer, [text for parts in plain for text, _, _ in parts]))
    for parts in plain:
        yield [([*next(tokens), *[tokenizer.eos_token_id] * ends], learned) for _, learned, ends in parts]


def _plain(turns: Conversation, multi_turn: MultiTurn) -> Iterator[tuple[str, bool, bool]]:
    """Texts that are tokenised by themselves, whether each is learned, and whether a text ends with it."""
    opening = ""
    last = max((i for i in answers(turns) if turns[i].is_learned), default=0)
    for i, turn in enumerate(turns):
        if turn.role == ASSISTANT:
            yield _plain_answer(turn), turn.is_learned and (i == last or multi_turn is not MultiTurn.LAST_ANSWER), True
            opening = ""
        else:
            opening += (_SYSTEM if turn.role == SYSTEM else QUESTION).format(prompt=turn.content)
            if turn.role == USER:
                yield opening, False, False


def _plain_answer(turn: Message) -> str:
    return f"<think>\n{turn.reasoning}\n</think>\n\n{turn.content}" if turn.reasoning else turn.content


def refuse_tools_in_plain_form(talk: Talk) -> None:
    """Raise ConfigError for a conversation that only a chat template can write."""
    has_calls = any(turn.tool_calls or turn.role not in (SYSTEM, USER, ASSISTANT) for turn in talk.turns)
    if talk.tools or has_calls:
        raise ConfigError(
            f"{talk.place}: the record has tools or tool calls, and the model no chat template that could write them",
            hint="give one by model.chatTemplate, or leave out such records",
        )


def _answer(tokenizer: Any, ids: list[int]) -> Iterator[Span]:
    """The answer is learned up to its end of turn.  White space that the template writes after that is not."""
    border = len(ids) if (end := end_of_turn(tokenizer, ids)) is None else end
    yield ids[:border], True
    yield ids[border:], False


def end_of_turn(tokenizer: Any, ids: Sequence[int]) -> int | None:
    """How many tokens an answer has up to its end of turn, a special token; None where nothing ends it."""
    decode = tokenizer.backend_tokenizer.decode
    end = len(ids)
    while end and not decode([ids[end - 1]], skip_special_tokens=False).strip():
        end -= 1
    return end if end and not decode([ids[end - 1]], skip_special_tokens=True) else None
