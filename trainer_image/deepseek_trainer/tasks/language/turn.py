"""Turns one message of the data into a turn, whatever its role and its keys are called.

Errors name the place, never the content.
"""

from dataclasses import dataclass
from typing import Any, Final, NoReturn

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.data.fields import Fields, encodable, is_empty, kind, some
from deepseek_trainer.tasks.language.conversation import ASSISTANT, ROLES, SYSTEM, TOOL, USER, Message, ToolCall
from deepseek_trainer.tasks.language.names import Names
from deepseek_trainer.tasks.language.refused import refuse_in_message, refuse_unread
from deepseek_trainer.tasks.language.tools import called, calls_in_text, calls_of

MESSAGE: Final = 'a message is {"role": "system", "user", "assistant" or "tool", "content": "..."}'
_CALL: Final = "function_call"  # LLaMA-Factory's role of an assistant that says nothing but a call
_ROLES: Final = {
    **{role: role for role in ROLES},
    **dict.fromkeys(["developer"], SYSTEM),
    **dict.fromkeys(["human", "prompter"], USER),
    **dict.fromkeys(["gpt", "chatgpt", "bot", "model", "ai"], ASSISTANT),
    **dict.fromkeys(["function", "observation", "tool_response", "tool_result"], TOOL),
    **dict.fromkeys([_CALL, "tool_call"], _CALL),
}
_TEXT: Final = (None, "text", "input_text", "output_text")  # types of parts of a content that are text
_WEIGHTS: Final = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}


@dataclass(frozen=True, slots=True)
class Turn:
    """A message, where it stands, and of which call it is the result, if it says so."""

    message: Message
    place: str
    call_id: str = ""
    tool: str = ""


def turn_of(value: Any, field: str, record: Fields, names: Names, place: str) -> Turn:
    """The turn that `value` spells, a message in a field of the record."""
    if not isinstance(value, dict):
        raise DataError(f"{place} must be an object, this is {kind(value)}", hint=MESSAGE)
    fields = record.within(value, place, field)
    role = _role(fields, names)
    calls = _calls(fields)
    text, thought = _content(fields, names, is_needed=not calls)
    if role == _CALL:
        role, text, calls = ASSISTANT, "", calls_in_text(text, place)
    message = Message(role, text, reasoning_of(fields, names) or thought, calls, _is_learned(fields, names, role))
    call_id, tool = (_word(fields, "tool_call_id"), _word(fields, "name")) if role == TOOL else ("", "")
    refuse_in_message(fields)
    refuse_unread(fields, (*names.role, *names.content))
    _refuse_misfit(message, fields, names)
    return Turn(message, place, call_id, tool)


def reasoning_of(fields: Fields, names: Names) -> str:
    """What was thought before an answer."""
    if (field := fields.first(names.reasoning)) is None:
        return ""
    return encodable(fields.read(field), field, fields.place).strip()


def _role(fields: Fields, names: Names) -> str:
    field = fields.first(names.role)
    if field is None:
        _refuse_without(fields, names.role[0])
    said = fields.read(field)
    role = _ROLES.get(said.lower()) if isinstance(said, str) else None
    if role is None:
        raise DataError(f"{fields.place}: field {shown(field)} must be one of {', '.join(ROLES)}", hint=MESSAGE)
    return role


def _content(fields: Fields, names: Names, *, is_needed: bool) -> tuple[str, str]:
    """What is said, and what a part of it says was thought."""
    field = fields.first(names.content)
    if field is not None:
        return _text(fields.read(field), field, fields)
    if is_needed:
        if null := next((name for name in names.content if name in fields.names), None):
            encodable(None, null, fields.place)
        _refuse_without(fields, names.content[0])
    return "", ""


def _text(value: Any, field: str, fields: Fields) -> tuple[str, str]:
    """A string, or the texts of a list of parts, one a line, as servers join them."""
    if not isinstance(value, list):
        return encodable(value, field, fields.place), ""
    parts = [_part(each, field, fields, f"{fields.place}: part {i}") for i, each in enumerate(value, 1)]
    texts, thoughts = ([said for said, is_thought in parts if is_thought is wanted] for wanted in (False, True))
    return "\n".join(texts), "\n".join(thoughts)


def _part(value: Any, field: str, fields: Fields, place: str) -> tuple[str, bool]:
    """The text of a part, and whether it was only thought."""
    if isinstance(value, str):
        return encodable(value, field, place), False
    if isinstance(value, dict):
        part = fields.within(value, place, field)
        type_ = part.read("type")
        if type_ in _TEXT and "text" in value:
            return encodable(part.read("text"), "text", place), False
        if type_ == "thinking" and "thinking" in value:
            return encodable(part.read("thinking"), "thinking", place), True
    raise DataError(
        f"{place} of field {shown(field)} is no text: pictures, sound and files are not read with texts",
        hint='a part is {"type": "text", "text": "..."}; take the record away, or set data.onBadRecord: Skip',
    )


def _calls(fields: Fields) -> tuple[ToolCall, ...]:
    """Those of `tool_calls`, or of the older `function_call`, which has one."""
    several, single = fields.read("tool_calls"), fields.read("function_call")
    calls = () if is_empty(several) else calls_of(several, "tool_calls", fields)
    return calls if is_empty(single) else (*calls, called(single, f"{fields.place}: field 'function_call'"))


def _is_learned(fields: Fields, names: Names, role: str) -> bool:
    """Whether an answer is: each of the fields that can say so must agree."""
    said = {
        field: _truth(value, field, fields.place) for field in names.weight if not is_empty(value := fields.read(field))
    }
    if len(set(said.values())) > 1:
        raise DataError(f"{fields.place}: fields {' and '.join(map(shown, said))} contradict each other")
    if role != ASSISTANT and (wanted := [field for field, truth in said.items() if truth]):
        raise DataError(
            f"{fields.place}: field {shown(wanted[0])} wants the {role}'s words learned: only the assistant's are",
            hint=f"leave it out by data.ignoredFields: [{wanted[0]}]",
        )
    return role != ASSISTANT or all(said.values())


def _truth(value: Any, field: str, place: str) -> bool:
    truth = _WEIGHTS.get(str(value).strip().lower()) if isinstance(value, str | int | float) else None
    if truth is None:
        raise DataError(
            f"{place}: field {shown(field)} must be 0 or 1, true or false: an answer is learned or not",
            hint="an answer cannot be learned in part",
        )
    return truth


def _word(fields: Fields, field: str) -> str:
    value = fields.read(field)
    return "" if value is None else encodable(value, field, fields.place)


def _refuse_misfit(message: Message, fields: Fields, names: Names) -> None:
    """Raise DataError for what nobody can say in that role."""
    role, place = message.role, fields.place
    for what, said in (("tool calls", message.tool_calls), ("reasoning", message.reasoning)):
        if said and role != ASSISTANT:
            raise DataError(f"{place} has {what}, and is the {role}'s: only the assistant has them")
    if is_empty(message.content) and not message.tool_calls and role != TOOL:
        field = fields.first(names.content) or names.content[0]
        raise DataError(f"{place}: field {shown(field)} is empty: each turn says something")


def _refuse_without(fields: Fields, field: str) -> NoReturn:
    missing = f"{fields.place}: no field {shown(field)}"
    there = some(fields.names) or "none"
    raise DataError(f"{missing} among {len(fields.names)}", hint=MESSAGE, full=f"{missing}; it has: {there}")
