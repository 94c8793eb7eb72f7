"""Questions and answers, in all shapes that people have them in: fields of a record, or lists of messages.

Errors name the place, never the content.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.data.fields import Fields, encodable, is_empty, kind
from deepseek_trainer.tasks.language.conversation import ASSISTANT, SYSTEM, USER, Conversation, Message, Question
from deepseek_trainer.tasks.language.messages import history_of, is_messages, message_of, messages_of
from deepseek_trainer.tasks.language.names import Names
from deepseek_trainer.tasks.language.order import refuse_disorder
from deepseek_trainer.tasks.language.refused import is_switch, refuse_unread
from deepseek_trainer.tasks.language.tools import tools_of
from deepseek_trainer.tasks.language.turn import reasoning_of


@dataclass(frozen=True, slots=True)
class Asked:
    """What comes before an answer, and the tools of the whole conversation."""

    turns: Conversation
    tools: tuple[str, ...] = ()
    is_plain: bool = False  # one question in a field of its own, and nothing beside it

    @property
    def question(self) -> Question:
        return self.turns[0].content if self.is_plain else self.turns


def instruction(record: Fields, names: Names) -> tuple[Question, Message, tuple[str, ...]]:
    """The question of an Instruction record, its last answer that is learned, and the tools."""
    if (field := record.first(names.messages)) is not None:
        turns = messages_of(record.read(field), field, record, names, is_whole=True)
        asked = Asked((*with_system(turns, record, names),), tools(record, names))
        whole = asked.turns
        # Documented since conversations are read: they win over the fields that the job names.
        leave = {names.prompt[0], names.response[0]}
    else:
        asked = asked_in_fields(record, names, "an Instruction record needs a prompt and a response")
        whole = (*asked.turns, *_answers(record, names))
        asked = replace(asked, is_plain=asked.is_plain and len(whole) == 2 and not whole[1].reasoning)
        refuse_disorder(whole, record.place)
        leave = set()
    unread = [name for name in names.of_shapes() if name not in leave]
    refuse_unread(record, unread, [turn.content for turn in whole])
    refuse_open_thoughts(whole, record.place)
    *before, last = _learned(whole, record.place)
    return Asked((*before,), is_plain=asked.is_plain).question, last, asked.tools


def refuse_open_thoughts(turns: Sequence[Message], place: str) -> None:
    """Raise DataError for an answer that ends within its thought: the model would learn to answer nothing."""
    for i, turn in enumerate(turns, 1):
        is_open = turn.content.lstrip().startswith("<think>") and "</think>" not in turn.content
        if turn.role == ASSISTANT and turn.is_learned and is_open:
            raise DataError(
                f"{place}: message {i} opens <think> and does not close it",
                hint="take the record away, it was probably cut, or set data.onBadRecord: Skip",
            )


def asked_in_fields(record: Fields, names: Names, rule: str) -> Asked:
    """What is asked in a field, with the input, the system message and the earlier turns in others.

    Messages give `rule` where nothing is asked.
    """
    field = record.first(names.prompt) or names.prompt[0]
    if is_messages(value := record.read(field)):
        turns, is_list = [*map(unlearned, messages_of(value, field, record, names))], True
    else:
        turns, is_list = [Message(USER, _question(record, field, names, rule))], False
    earlier = _earlier(record, names)
    whole = with_system([*earlier, *turns], record, names)
    found = Asked((*whole,), tools(record, names))
    return replace(found, is_plain=len(whole) == 1 and not is_list and not found.tools)


def tools(record: Fields, names: Names) -> tuple[str, ...]:
    if (field := record.first(names.tools)) is None or is_empty(value := record.read(field)):
        return ()
    return tools_of(value, field, record.place)


def with_system(turns: list[Message], record: Fields, names: Names) -> list[Message]:
    """The turns after the system message that has a field of its own."""
    if (field := record.first(names.system)) is None:
        return turns
    text = text_in(record, field)
    if is_empty(text) or turns[0] == Message(SYSTEM, text):
        return turns
    if turns[0].role == SYSTEM:
        raise DataError(
            f"{record.place}: field {shown(field)} and the first message are two different system messages",
            hint="take one of them away",
        )
    return [Message(SYSTEM, text), *turns]


def unlearned(turn: Message) -> Message:
    """A turn of a prompt, of which no answer is learned."""
    return replace(turn, is_learned=turn.role != ASSISTANT)


def text_in(record: Fields, field: str) -> str:
    """The text in a field beside the question and the answer."""
    value = record.read(field)
    if not isinstance(value, str):
        raise DataError(
            f"{record.place}: field {shown(field)} must be a string, this is {kind(value)}",
            hint=f"leave it out by data.ignoredFields: [{field}]",
        )
    return encodable(value, field, record.place)


def _question(record: Fields, field: str, names: Names, rule: str) -> str:
    """The question and, in the next line, Alpaca's input."""
    said = [record.string(field, "promptField")]
    if (other := record.first(name for name in names.input if name != field)) is not None:
        said.append(text_in(record, other))
    if not (said := [text for text in said if text.strip()]):
        raise DataError(f"{record.place}: field {shown(field)} is empty: {rule}")
    return "\n".join(said)


def _earlier(record: Fields, names: Names) -> list[Message]:
    if (field := record.first(names.history)) is None or is_empty(value := record.read(field)):
        return []
    return history_of(value, field, record, names)


def _answers(record: Fields, names: Names) -> list[Message]:
    """The answer in a field, or the messages that are one."""
    field = record.first(names.response) or names.response[0]
    value = record.read(field)
    if is_messages(value):
        return messages_of(value, field, record, names)
    if isinstance(value, dict):
        return [message_of(value, field, record, names)]
    text = record.string(field, "responseField")
    if not text.strip():
        raise DataError(
            f"{record.place}: field {shown(field)} is empty: an Instruction record needs a prompt and a response"
        )
    thought = record.first(names.reasoning)
    is_text = thought is not None and not is_switch(record.unread().get(thought))
    return [Message(ASSISTANT, text, reasoning_of(record, names) if is_text else "")]


def _learned(turns: Sequence[Message], place: str) -> Sequence[Message]:
    """The turns up to the last answer that is learned: nothing is learned of what follows."""
    learned = [i for i, turn in enumerate(turns, 1) if turn.role == ASSISTANT and turn.is_learned]
    if not learned:
        raise DataError(
            f"{place}: none of its answers is learned", hint="take the record away, or set data.onBadRecord: Skip"
        )
    return turns[: learned[-1]]
