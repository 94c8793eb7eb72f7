"""Models that state each rule over several fields twice: as CEL for the API server, in Python for good messages."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.names_elsewhere import field_for, plain


class _Free:
    """The type of FREE."""


# Marks a field that may change without another model coming out: contract/shaping.py.  All others count.
FREE: Final = _Free()
_SHOWN_PATHS: Final = 3
_VERY_NEAR: Final = 0.85  # of 1: a slip of the finger rather than another field
_FIELD: Final = re.compile(r"[a-z][A-Za-z]*(?:\.[a-z][A-Za-z]*)*(?:\[[^\]]+\])?")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule over several fields of a model.

    `cel` is what the API server evaluates, with the object as `self`.  `holds` is the same rule in Python; it is None
    where the rule compares with `oldSelf`, which only the API server knows.  `message` names the rule and the way out.
    """

    cel: str
    message: str
    holds: Callable[[Any], bool] | None = None


class Model(BaseModel):
    """Base of everything in the job file: camelCase outside, snake_case inside, frozen.

    Unknown fields are ignored here, because the API server has already pruned those that it does
    not know, and a newer CRD must not fail an older operator.  Where a person or a file speaks to
    us directly, `unknown_fields` finds them.
    """

    model_config = ConfigDict(
        frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, hide_input_in_errors=True
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _rules_hold(self) -> Self:
        for rule in self.rules:
            if rule.holds is not None and not rule.holds(self):
                raise ValueError(f"{rule.message}; given: {_given(self, rule.message)}")
        return self


def _given(model: Model, message: str) -> str:
    """The value of each field that `message` names, as `model` has it: `numNodes: 2, no profile, base`."""
    names = dict.fromkeys(_FIELD.findall(message))
    return ", ".join(text for name in names if (text := _described(model, name)) is not None)


def _described(model: Any, name: str) -> str | None:
    """The field `name`, with its value unless that is an object; None if `model` has no such field."""
    value = model
    for part in re.split(r"\.(?![^\[]*\])|\[|\]$", name):
        if isinstance(value, Model):
            fields = {info.alias: field for field, info in type(value).model_fields.items()}
            if part not in fields:
                return None
            value = getattr(value, fields[part])
        elif isinstance(value, Mapping):
            value = value.get(part)
    if value is None:
        return f"no {name}"
    plain = to_jsonable_python(value)
    items = plain if isinstance(plain, list) else plain.values() if isinstance(value, Mapping) else [plain]
    return name if any(isinstance(item, dict) for item in items) else f"{name}: {shown(plain)}"


def unknown_fields(model: type[Model], data: Any, path: str = "", root: type[Model] | None = None) -> Iterator[str]:
    """A message for each field of `data` that `model` does not know, with what was probably meant.

    That is one of `model` by another spelling, what other trainers call so, or a field elsewhere in `root`.
    """
    if not isinstance(data, Mapping):
        return
    root = root or model
    fields = _fields(model)
    for key, value in data.items():
        here = f"{path}.{key}" if path else str(key)
        if key not in fields:
            yield f"{here}: unknown field{_meant(str(key), fields, root)}"
        elif nested := _model_of(fields[key].annotation):
            items = value if isinstance(value, list) else [value]
            for i, item in enumerate(items):
                yield from unknown_fields(nested, item, f"{here}[{i}]" if isinstance(value, list) else here, root)


def _fields(model: type[Model]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _meant(key: str, known: Mapping[str, Any], root: type[Model]) -> str:
    by_plain = {plain(name): name for name in known}
    if same := by_plain.get(plain(key)):
        return f", did you mean {shown(same)}"
    if elsewhere := field_for(key):
        return f": {elsewhere}"
    near = difflib.get_close_matches(plain(key), list(by_plain), n=1)
    if near and difflib.get_close_matches(plain(key), near, cutoff=_VERY_NEAR):
        return f", did you mean {shown(by_plain[near[0]])}"
    if paths := [path for path in paths_of(root) if plain(path.rpartition(".")[2]) == plain(key)]:
        return f" here: give {' or '.join(paths[:_SHOWN_PATHS])}"
    return f", did you mean {shown(by_plain[near[0]])}" if near else f", known: {', '.join(known)}"


def paths_of(model: type[Model], prefix: str = "") -> Iterator[str]:
    """The paths of all fields of `model` and in it; a list's items are left out."""
    for name, field in _fields(model).items():
        yield f"{prefix}{name}"
        if nested := _model_of(field.annotation):
            yield from paths_of(nested, f"{prefix}{name}.")


def _model_of(annotation: Any) -> type[Model] | None:
    """The Model inside `M`, `M | None` or `tuple[M, ...]`, if there is one."""
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    return next((m for arg in get_args(annotation) if (m := _model_of(arg))), None)
