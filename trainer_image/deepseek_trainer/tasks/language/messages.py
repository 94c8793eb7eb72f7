"""Turns lists of messages into the turns of a conversation.

Errors name the place, never the content.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.data.fields import Fields, encodable, kind
from deepseek_trainer.tasks.language.conversation import ASSISTANT, TOOL, USER, Message, ToolCall
from deepseek_trainer.tasks.language.names import Names
from deepseek_trainer.tasks.language.order import is_more_calls, refuse_disorder
from deepseek_trainer.tasks.language.turn import MESSAGE, Turn, turn_of


def messages_of(value: Any, field: str, record: Fields, names: Names, *, is_whole: bool = False) -> list[Message]:
    """The turns in a list of messages: calls in a row as one turn, and results in the order of the calls.

    Raises DataError for bad messages and, if the list `is_whole`, for turns out of order.
    """
    place = record.place
    if not isinstance(value, list):
        raise DataError(
            f"{place}: field {shown(field)} must be a list of messages, this is {kind(value)}", hint=MESSAGE
        )
    if not value:
        raise DataError(f"{place}: field {shown(field)} is an empty list: a conversation has a question and an answer")
    turns = [turn_of(each, field, record, names, f"{place}: message {i}") for i, each in enumerate(value, 1)]
    if is_whole:
        refuse_disorder([turn.message for turn in turns], place)
    return [*_in_order(_joined(turns))]


def is_messages(value: Any) -> bool:
    """Whether it can only be a list of messages."""
    return isinstance(value, list) and any(isinstance(each, dict) for each in value)


def message_of(value: Any, field: str, record: Fields, names: Names) -> Message:
    """The one message in a field."""
    return turn_of(value, field, record, names, f"{record.place}: field {shown(field)}").message


def history_of(value: Any, field: str, record: Fields, names: Names) -> list[Message]:
    """Earlier turns: pairs of a question and its answer, or messages."""
    if not isinstance(value, list) or not all(isinstance(each, list) for each in value):
        return messages_of(value, field, record, names)
    turns = list[Message]()
    for i, pair in enumerate(value, 1):
        place = f"{record.place}: pair {i}"
        if len(pair) != 2 or not all(isinstance(said, str) and said.strip() for said in pair):
            raise DataError(f"{place} of field {shown(field)} must be two texts, a question and its answer")
        turns += [
            Message(role, encodable(said, field, place)) for role, said in zip((USER, ASSISTANT), pair, strict=True)
        ]
    return turns


def _joined(turns: Sequence[Turn]) -> list[Turn]:
    joined: list[Turn] = []
    for turn in turns:
        if joined and is_more_calls(joined[-1].message, turn.message):
            caller = joined[-1].message
            whole = replace(caller, tool_calls=caller.tool_calls + turn.message.tool_calls)
            joined[-1] = replace(joined[-1], message=whole)
        else:
            joined.append(turn)
    return joined


def _in_order(turns: Sequence[Turn]) -> Iterator[Message]:
    calls: tuple[ToolCall, ...] = ()
    for is_result, group in groupby(turns, lambda turn: turn.message.role == TOOL):
        found = [*group]
        yield from (turn.message for turn in (_by_call(found, calls) if is_result else found))
        calls = found[-1].message.tool_calls


def _by_call(results: list[Turn], calls: Sequence[ToolCall]) -> list[Turn]:
    """The results in the order of the calls.  Of calls that the assistant makes in its own words there are none."""
    if not calls and not any(result.call_id for result in results):
        return results
    left, placed = [*range(len(calls))], list[tuple[int, Turn]]()
    for result in results:
        call = next((i for i in left if _is_result(result, calls[i])), None)
        if call is None:
            raise DataError(f"{result.place} is the result of no call that the turn before makes")
        left.remove(call)
        placed.append((call, result))
    if left and any(result.call_id for result in results):
        raise DataError(f"{results[-1].place}: {len(left)} of the {len(calls)} calls before it have no result")
    return [result for _, result in sorted(placed, key=itemgetter(0))]


def _is_result(result: Turn, call: ToolCall) -> bool:
    """By what both of them say; a result that says nothing is of the next call."""
    if result.call_id and call.id:
        return result.call_id == call.id
    return result.tool in ("", call.name)
