"""What fields are called in the data that people have, by what they mean."""

from dataclasses import dataclass, fields
from typing import Final, Self

from deepseek_trainer.contract.data import DataSpec

MUST_CONTAIN: Final = "mustContain"  # what a right answer must say


@dataclass(frozen=True, slots=True)
class Names:
    """The names that a field may have, the likeliest first.  One that the job gives is the only one."""

    prompt: tuple[str, ...] = ("prompt", "instruction", "question", "query", "input")
    response: tuple[str, ...] = ("response", "completion", "output", "answer")
    messages: tuple[str, ...] = ("messages", "conversations", "conversation")
    chosen: tuple[str, ...] = ("chosen",)
    rejected: tuple[str, ...] = ("rejected", "rejected_response")
    input: tuple[str, ...] = ("input", "context")
    system: tuple[str, ...] = ("system", "system_prompt")
    history: tuple[str, ...] = ("history",)
    tools: tuple[str, ...] = ("tools", "functions")
    reasoning: tuple[str, ...] = ("reasoning_content", "reasoning", "thinking")
    weight: tuple[str, ...] = ("weight", "train", "loss")
    role: tuple[str, ...] = ("role", "from", "speaker")
    content: tuple[str, ...] = ("content", "value", "text")

    @classmethod
    def of(cls, spec: DataSpec) -> Self:
        given = {name: getattr(spec, f"{name}_field") for name in _SETTINGS}
        changed = {
            name: field for name, field in given.items() if field != DataSpec.model_fields[f"{name}_field"].default
        }
        return cls(**{name: (field,) for name, field in (changed | (spec.fields or {})).items()})

    def of_records(self) -> tuple[str, ...]:
        """All names of fields that a record may have."""
        own = (getattr(self, each.name) for each in fields(self) if each.name not in ("role", "content"))
        return (*(name for names in own for name in names), MUST_CONTAIN)

    def of_shapes(self) -> tuple[str, ...]:
        """Names of fields that always mean what some shape means by them: none may be passed over."""
        both = (self, Names())
        own = (getattr(names, each.name) for names in both for each in fields(names) if each.name in _SHAPING)
        return tuple(dict.fromkeys(name for names in own for name in names if name not in _AMBIGUOUS))


_SHAPING: Final = ("prompt", "response", "messages", "input", "system", "history", "tools", "reasoning")
_AMBIGUOUS: Final = ("question", "query", "answer", "context", "conversation")  # often they say something else
_SETTINGS: Final = ("prompt", "response", "messages", "chosen", "rejected")
