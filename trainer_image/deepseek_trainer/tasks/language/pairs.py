"""Pairs of answers to one question, in all shapes that people have them in.

Errors name the place, never the content.
"""

from collections.abc import Sequence
from typing import Final

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.data.fields import Fields
from deepseek_trainer.tasks.language.conversation import ASSISTANT, SYSTEM, TOOL, USER, Message, Question
from deepseek_trainer.tasks.language.instruction import Asked, asked_in_fields, refuse_open_thoughts, tools, with_system
from deepseek_trainer.tasks.language.messages import is_messages, message_of, messages_of
from deepseek_trainer.tasks.language.names import Names
from deepseek_trainer.tasks.language.order import refuse_disorder
from deepseek_trainer.tasks.language.refused import refuse_unread

_RULE: Final = "a Preference record needs a prompt and two answers"


def pair(record: Fields, names: Names) -> tuple[Question, str, str, tuple[str, ...]]:
    """The question of a Preference record, its chosen answer, its rejected one, and the tools."""
    place = record.place
    talk = _talk(record, names)
    is_last_chosen = record.first(names.chosen) is None and bool(talk) and talk[-1].role == ASSISTANT
    chosen = talk if is_last_chosen else _side(record, names.chosen, "chosenField", names)
    rejected = _side(record, names.rejected, "rejectedField", names)
    before = _shared(chosen, rejected, place)
    asked = _asked(record, names, [] if talk in (chosen, rejected) else talk, before)
    answers = [_answer(side[-1], place) for side in (chosen, rejected)]
    _refuse_unread(record, names, [*asked.turns, chosen[-1], rejected[-1]], has_messages=bool(talk))
    if answers[0] == answers[1]:
        raise DataError(
            f"{place}: fields {shown(names.chosen[0])} and {shown(names.rejected[0])} are equal: none is preferred",
            hint="leave such pairs out, or set data.onBadRecord: Skip",
        )
    refuse_disorder((*asked.turns, chosen[-1]), place)
    refuse_open_thoughts((*asked.turns, chosen[-1]), place)
    return asked.question, answers[0], answers[1], asked.tools


def _talk(record: Fields, names: Names) -> list[Message]:
    """The messages before the answers or, in some data, with one of them."""
    field = record.first(names.messages)
    return [] if field is None else messages_of(record.read(field), field, record, names)


def _side(record: Fields, candidates: Sequence[str], setting: str, names: Names) -> list[Message]:
    """An answer, perhaps with the turns before it."""
    field = record.first(candidates) or candidates[0]
    value = record.read(field)
    if is_messages(value):
        return messages_of(value, field, record, names)
    if isinstance(value, dict):
        return [message_of(value, field, record, names)]
    text = record.string(field, setting)
    if not text.strip():
        raise DataError(f"{record.place}: field {shown(field)} is empty: {_RULE}")
    return [Message(ASSISTANT, text)]


def _shared(chosen: Sequence[Message], rejected: Sequence[Message], place: str) -> list[Message]:
    """The turns before both answers."""
    both = [[*side[:-1]] for side in (chosen, rejected)]
    if all(both) and both[0] != both[1]:
        raise DataError(
            f"{place}: the chosen and the rejected turns differ before the last: a pair has two answers to one question"
        )
    return both[0] or both[1]


def _asked(record: Fields, names: Names, talk: list[Message], shared: list[Message]) -> Asked:
    """The question to which both answers belong, from fields, messages, or what the answers bring along."""
    if talk:
        _refuse_answered(talk, record.place)
        asked = Asked((*with_system(talk, record, names),), tools(record, names))
    elif not shared or record.first(names.prompt) is not None:
        asked = asked_in_fields(record, names, _RULE)
    else:
        return Asked((*with_system(shared, record, names),), tools(record, names))
    return Asked((*_together(asked.turns, shared, record.place),), asked.tools) if shared else asked


def _refuse_answered(talk: Sequence[Message], place: str) -> None:
    if talk[-1].role not in (USER, TOOL):
        raise DataError(f"{place}: the last message is the {talk[-1].role}'s: before two answers the user speaks")


def _together(asked: Sequence[Message], shared: list[Message], place: str) -> list[Message]:
    """What the answers bring along, if it is what is asked, with either one's system message."""
    systems = list(dict.fromkeys(turn for turn in (asked[0], shared[0]) if turn.role == SYSTEM))
    first, rest = ([turn for turn in turns if turn.role != SYSTEM] for turns in (asked, shared))
    if len(systems) > 1 or not (first == rest[: len(first)] or (len(first) == 1 and first[0] in rest)):
        raise DataError(
            f"{place}: the prompt is not what the chosen turns begin with: a pair has two answers to one question",
            hint="take one of them away",
        )
    return [*systems, *rest]


def _answer(message: Message, place: str) -> str:
    """What an answer says.  Nothing else can be compared."""
    if message.role != ASSISTANT:
        raise DataError(f"{place}: an answer is the {message.role}'s: of a pair both are the assistant's")
    if message.reasoning or message.tool_calls or not message.is_learned:
        raise DataError(
            f"{place}: an answer of a pair has reasoning, tool calls or no weight: texts are compared",
            hint="write what is to be compared into the content",
        )
    return message.content


def _refuse_unread(record: Fields, names: Names, turns: Sequence[Message], *, has_messages: bool) -> None:
    leave = names.prompt[:1] if has_messages else ()
    unread = [name for name in names.of_shapes() if name not in leave]
    refuse_unread(record, unread, [turn.content for turn in turns])
