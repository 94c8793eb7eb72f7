"""A conversation: who said what, in order.  Pure; the contents are private."""

from dataclasses import dataclass
from typing import Any, Final

SYSTEM: Final = "system"
USER: Final = "user"
ASSISTANT: Final = "assistant"
TOOL: Final = "tool"  # what a call came to
ROLES: Final = (SYSTEM, USER, ASSISTANT, TOOL)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What the assistant asks a tool to do."""

    name: str
    arguments: str  # JSON text of an object
    id: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str
    content: str
    reasoning: str = ""  # what the assistant thought before it answered
    tool_calls: tuple[ToolCall, ...] = ()
    is_learned: bool = True  # of an answer: False where the record gives it no weight


Conversation = tuple[Message, ...]
Question = str | Conversation  # all that comes before an answer: one question, or turns of which the last is the user's


def question_from(plain: Any) -> Question:
    """The question from which `dataclasses.asdict` and JSON made `plain`."""
    return plain if isinstance(plain, str) else tuple(_message_from(message) for message in plain)


def _message_from(plain: dict[str, Any]) -> Message:
    calls = tuple(ToolCall(**call) for call in plain.get("tool_calls", ()))
    return Message(**(plain | {"tool_calls": calls}))


def as_text(question: Question) -> str:
    """The question for a person to read: a lone one as it is, a conversation with who says what."""
    if isinstance(question, str):
        return question
    return "\n".join(f"{message.role}: {message.content}" for message in question)
