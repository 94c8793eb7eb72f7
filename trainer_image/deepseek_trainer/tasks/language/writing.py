"""What a chat template writes for a conversation: its messages as templates read them, and what it leaves out.

Templates differ in how they read tool calls, and pass over what they do not know without a word.  So a conversation of
the same shape, made of marks, is written first: what of it is missing in the text would be missing for the record, too.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from transformers.utils.chat_template_utils import render_jinja_template

from deepseek_trainer.contract.documents import json_text
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.tasks.language.conversation import ASSISTANT, TOOL, Conversation, Message, ToolCall

log = logging.getLogger(__name__)

_MAX_SAID: Final = 400  # [characters] of a template's own words
_LEAVE_OUT: Final = "leave out what it does not take, often the system message, or bring another: model.chatTemplate"
_BRING: Final = "bring a template that does by model.chatTemplate, or leave out such records"
_MARK: Final = "zqx"
_MARKED_TOOL: Final = {
    "type": "function",
    "function": {
        "name": f"{_MARK}tool",
        "description": "a tool",
        "parameters": {"type": "object", "properties": {"a": {"type": "string", "description": "a"}}, "required": []},
    },
}


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation as a template gets it, and what messages call it."""

    turns: Conversation
    place: str = "the conversation"
    tools: tuple[str, ...] = ()  # JSON text of each

    def size(self) -> int:
        """Characters."""
        said = (len(turn.content) + len(turn.reasoning) + _size(turn.tool_calls) for turn in self.turns)
        return sum(said) + sum(map(len, self.tools))


def _size(calls: tuple[ToolCall, ...]) -> int:
    return sum(len(call.name) + len(call.arguments) for call in calls)


@dataclass(frozen=True, slots=True)
class Form:
    """How messages with tool calls are handed over: templates read one or the other."""

    no_content: str | None = ""
    arguments_as_text: bool = False


FORMS: Final = (Form(), Form(arguments_as_text=True), Form(None), Form(None, arguments_as_text=True))
Shape = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes conversations with a tokenizer's chat template.  Raises ConfigError where the template refuses one."""

    tokenizer: Any
    _forms: dict[Shape, Form] = field(default_factory=dict)

    def asked(self, talk: Talk, **options: bool) -> str:
        """The turns, and what opens an answer."""
        return self._written(talk, add_generation_prompt=True, **options)

    def whole(self, talk: Talk) -> str:
        """The turns alone."""
        return self._written(talk, add_generation_prompt=False)

    def refuse_lossy(self, talk: Talk) -> None:
        """Raise ConfigError if the template does not write something of a conversation of this shape."""
        self._form(talk)

    def _written(self, talk: Talk, **options: bool) -> str:
        form = self._form(talk) if _has_tools(talk) else FORMS[0]
        return _rendered(self.tokenizer, talk, form, options)

    def _form(self, talk: Talk) -> Form:
        shape = tuple((turn.role, bool(turn.content), len(turn.tool_calls)) for turn in talk.turns), bool(talk.tools)
        if shape not in self._forms:
            self._forms[shape] = self._found_form(talk)
        return self._forms[shape]

    def _found_form(self, talk: Talk) -> Form:
        marked = _marked(talk)
        losses = list[ConfigError]()
        for form in FORMS if any(turn.tool_calls for turn in talk.turns) else FORMS[:1]:
            try:
                _refuse_lost(marked, self._all_of(marked, form))
                return form
            except ConfigError as error:
                losses.append(error)
        raise losses[0]

    def _all_of(self, talk: Talk, form: Form) -> str:
        """The conversation, and its last question as it is asked: some templates write less once that is answered."""
        is_answered = talk.turns[-1].role == ASSISTANT
        asked = _rendered(
            self.tokenizer, before(talk, -1) if is_answered else talk, form, {"add_generation_prompt": True}
        )
        return asked + (_rendered(self.tokenizer, talk, form, {"add_generation_prompt": False}) if is_answered else "")


def _has_tools(talk: Talk) -> bool:
    return bool(talk.tools) or any(turn.tool_calls for turn in talk.turns)


def _marked(talk: Talk) -> Talk:
    """The same shape, of which every part says something that stands nowhere else."""
    turns = tuple(
        Message(
            turn.role,
            f"{_MARK}{i}said" if turn.content else "",
            tool_calls=tuple(
                ToolCall(f"{_MARK}{i}call{j}", f'{{"{_MARK}{i}name{j}": "{_MARK}{i}value{j}"}}', call.id)
                for j, call in enumerate(turn.tool_calls)
            ),
        )
        for i, turn in enumerate(talk.turns)
    )
    return Talk(turns, talk.place, (json_text(_MARKED_TOOL),) if talk.tools else ())


def _refuse_lost(talk: Talk, text: str) -> None:
    if talk.tools and f"{_MARK}tool" not in text:
        raise ConfigError(f"{talk.place}: the chat template does not write the record's tools", hint=_BRING)
    for i, turn in enumerate(talk.turns):
        if turn.content not in text:
            what = "what the assistant says beside its tool calls" if turn.tool_calls else f"the {turn.role}'s"
            raise ConfigError(
                f"{talk.place}: the chat template does not write message {i + 1}, {what}", hint=_LEAVE_OUT
            )
        for j, call in enumerate(turn.tool_calls):
            name = f"{_MARK}{i}name{j}"
            garbled = f"'{name}'" in text or f'\\"{name}' in text  # Python's spelling, or JSON within JSON
            if call.name not in text or name not in text or garbled:
                raise ConfigError(
                    f"{talk.place}: the chat template does not write the tool calls of message {i + 1}", hint=_BRING
                )


def _rendered(tokenizer: Any, talk: Talk, form: Form, options: dict[str, bool]) -> str:
    messages = list(_messages(talk.turns, form))
    tools = [json.loads(tool) for tool in talk.tools] or None
    try:
        template = tokenizer.get_chat_template(tools=tools)
        # Not by apply_chat_template, which drops a content that is None: some templates ask for that
        texts, _ = render_jinja_template(
            [messages], tools=tools, chat_template=template, **tokenizer.special_tokens_map, **options
        )
        return str(texts[0])
    except TemplateSyntaxError as error:
        line = int(error.lineno)
        raise ConfigError(
            f"the base model's chat template is no Jinja: line {line}: {shown(error.message or '', _MAX_SAID)}",
            hint="take it from the model's own release, or bring another: model.chatTemplate",
        ) from None
    except TemplateError as error:
        said = str(error)  # shown only if the template has these words: else they could be the record's
        is_own = 0 < len(said) <= _MAX_SAID and said in str(tokenizer.chat_template)
        _refuse(talk.place, (said if said.isprintable() else shown(said, _MAX_SAID)) if is_own else "")
    except MemoryError:
        raise
    except Exception as error:
        _refuse(talk.place, type(error).__name__)


def refuse_malformed(tokenizer: Any) -> None:
    """Raise ConfigError where the chat template is no template; one that refuses a sample is none the worse for it."""
    sample = [{"role": "user", "content": "Who?"}]
    try:
        render_jinja_template([sample], chat_template=tokenizer.chat_template, **tokenizer.special_tokens_map)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"model.chatTemplate is no Jinja: line {int(error.lineno)}: {shown(error.message or '', _MAX_SAID)}",
            hint="correct that line; a block scalar (|) keeps a template's lines as they are",
        ) from None
    except MemoryError:
        raise
    except Exception as error:
        log.debug("the chat template refuses a sample: %s", type(error).__name__)


def _refuse(place: str, why: str) -> NoReturn:
    raise ConfigError(f"{place}: the chat template refuses it{why and f': {why}'}", hint=_LEAVE_OUT) from None


def _messages(turns: Conversation, form: Form) -> Iterator[dict[str, Any]]:
    called: list[dict[str, Any]] = []  # and not answered yet
    for i, turn in enumerate(turns):
        message: dict[str, Any] = {"role": turn.role, "content": turn.content}
        if turn.reasoning:
            message |= {"reasoning_content": turn.reasoning, "thinking": turn.reasoning}
        if turn.tool_calls:
            called = [_call(call, f"call{i:02d}{j:03d}", form) for j, call in enumerate(turn.tool_calls)]
            message |= {"tool_calls": [*called], "content": turn.content or form.no_content}
        if turn.role == TOOL and called:
            call = called.pop(0)
            message |= {"name": call["function"]["name"], "tool_call_id": call["id"]}
        yield message


def _call(call: ToolCall, name: str, form: Form) -> dict[str, Any]:
    """`name` is its id if the record gives none: nine letters and digits, as the strictest template wants it."""
    arguments = call.arguments if form.arguments_as_text else json.loads(call.arguments)
    return {"id": call.id or name, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def before(talk: Talk, border: int) -> Talk:
    """Its first turns."""
    return replace(talk, turns=talk.turns[:border])


def answers(turns: Sequence[Message]) -> list[int]:
    """Which turns are answers."""
    return [i for i, turn in enumerate(turns) if turn.role == ASSISTANT]
