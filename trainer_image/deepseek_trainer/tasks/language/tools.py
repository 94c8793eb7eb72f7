"""Tools that an assistant may call, and its calls, in the forms of OpenAI, Hugging Face and LLaMA-Factory.

Errors name the place, never the content.
"""

from collections.abc import Mapping
from typing import Any, Final

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import parsed, shown
from deepseek_trainer.data.fields import Fields, encodable, is_empty, kind
from deepseek_trainer.tasks.language.conversation import ToolCall

_TOOL: Final = 'a tool is {"type": "function", "function": {"name": "...", "description": "...", "parameters": {...}}}'
_CALL: Final = 'a call is {"id": "...", "type": "function", "function": {"name": "...", "arguments": {...}}}'


def tools_of(value: Any, field: str, place: str) -> tuple[str, ...]:
    """The JSON text of each tool: those of a list, or of the JSON text of one, as tables have it."""
    listed = _json(value, field, place) if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise DataError(
            f"{place}: field {shown(field)} must be a list of tools, or its JSON text, this is {kind(listed)}",
            hint=_TOOL,
        )
    return tuple(_tool(each, f"{place}: tool {i}") for i, each in enumerate(listed, 1))


def _tool(value: Any, place: str) -> str:
    found = value if isinstance(value, dict) and "function" in value else {"type": "function", "function": value}
    function = found["function"]
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or is_empty(function["name"]):
        raise DataError(f"{place} has no name", hint=_TOOL)
    return _text(found, "function", place)


def calls_of(value: Any, field: str, message: Fields) -> tuple[ToolCall, ...]:
    """The calls of a message."""
    if not isinstance(value, list):
        raise DataError(
            f"{message.place}: field {shown(field)} must be a list of calls, this is {kind(value)}", hint=_CALL
        )
    return tuple(_call(each, field, message, f"{message.place}: call {i}") for i, each in enumerate(value, 1))


def _call(value: Any, field: str, message: Fields, place: str) -> ToolCall:
    if not isinstance(value, dict):
        raise DataError(f"{place} must be an object, this is {kind(value)}", hint=_CALL)
    call = message.within(value, place, field)
    if call.read("type") not in (None, "function"):
        raise DataError(f"{place}: field 'type' must be 'function'", hint=_CALL)
    function = call.read("function")
    found = called(function if function is not None else value, place)
    if function is None:
        for name in value:
            call.read(name)
    identity = call.read("id")
    return ToolCall(found.name, found.arguments, "" if identity is None else encodable(identity, "id", place))


def called(value: Any, place: str) -> ToolCall:
    """The call that an object with name and arguments spells; its arguments may be JSON text."""
    if not isinstance(value, Mapping):
        raise DataError(f"{place} must be an object, this is {kind(value)}", hint=_CALL)
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters"))
    if not isinstance(name, str) or is_empty(name):
        raise DataError(f"{place} has no name", hint=_CALL)
    if isinstance(arguments, str):
        arguments = _json(arguments, "arguments", place) if arguments.strip() else {}
    if not isinstance(arguments := {} if arguments is None else arguments, dict):
        raise DataError(
            f"{place}: field 'arguments' must be an object, or its JSON text, this is {kind(arguments)}", hint=_CALL
        )
    return ToolCall(encodable(name, "name", place), _text(arguments, "arguments", place))


def calls_in_text(text: str, place: str) -> tuple[ToolCall, ...]:
    """The calls of a turn that says nothing but their JSON: one object, or a list of them."""
    value = _json(text, "value", place)
    listed = value if isinstance(value, list) else [value]
    return tuple(called(each, place) for each in listed)


def _text(value: Any, field: str, place: str) -> str:
    try:
        text = json_text(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # a date, of a table; nested too deep
        raise DataError(f"{place}: field {shown(field)} has a value that JSON cannot say") from None
    return encodable(text, field, place)


def _json(text: str, field: str, place: str) -> Any:
    try:
        return parsed(text)
    except ValueError:
        raise DataError(f"{place}: field {shown(field)} is not JSON") from None
