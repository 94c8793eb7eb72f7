"""Who may speak after whom in a conversation.  Pure; the contents play no part."""

from collections.abc import Sequence
from typing import Final

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.tasks.language.conversation import ASSISTANT, SYSTEM, TOOL, USER, Message

_ORDER: Final = "after an optional system message, user and assistant take turns, and the assistant has the last word"
_RESULTS: Final = "the results of a call follow it, and then the assistant speaks"


def refuse_disorder(turns: Sequence[Message], place: str) -> None:
    """Raise DataError for turns that no chat template could mean."""
    if wrong := out_of_order(turns):
        raise DataError(f"{place}: {wrong}: {_RESULTS if TOOL in wrong else _ORDER}")


def out_of_order(turns: Sequence[Message]) -> str:
    """What is wrong with the order of the turns; empty if nothing is."""
    start = 1 if turns[0].role == SYSTEM else 0
    before: Message | None = None
    for i, message in enumerate(turns[start:], start + 1):
        if before is not None and is_more_calls(before, message):
            continue
        allowed = _after(before)
        if message.role not in allowed:
            return f"message {i} is the {message.role}'s, it must be the {allowed[0]}'s"
        before = message
    return "" if turns[-1].role == ASSISTANT else f"the last message is the {turns[-1].role}'s"


def is_more_calls(before: Message, message: Message) -> bool:
    """Whether a turn only goes on calling: some write parallel calls in turns of their own."""
    is_bare = not message.content and not message.reasoning and message.is_learned == before.is_learned
    return bool(before.role == ASSISTANT and before.tool_calls and message.tool_calls and is_bare)


def _after(message: Message | None) -> tuple[str, ...]:
    """Who may speak next.  An assistant that calls in its own words, and not in `tool_calls`, is answered as well."""
    if message is None:
        return (USER,)
    if message.role == TOOL:
        return (ASSISTANT, TOOL)
    if message.role != ASSISTANT:
        return (ASSISTANT,)
    return (TOOL,) if message.tool_calls else (USER, TOOL)
