"""Which settings of a job shape the weights that it trains.

Every field of the config counts, a new one too, unless FREE stands beside its definition.  FREE are the job's name, how
the work is spread and fitted into memory, and what happens beside the training: saving, sealing, evaluation, export.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python

from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.rules import FREE, Model

Json = dict[str, Any]

_SHOWN_CHANGES: Final = 3


@dataclass(frozen=True, slots=True)
class Change:
    """A setting that is not what it was."""

    path: str  # as in the job file: optimization.learningRate
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.path}: {shown(self.now)} instead of {shown(self.before)}"


def described(changes: list[Change]) -> str:
    """The first changes, in words."""
    more = len(changes) - _SHOWN_CHANGES
    return "; ".join(map(str, changes[:_SHOWN_CHANGES])) + (f"; and {more} more" if more > 0 else "")


def shaping(model: Model) -> Json:
    """The settings that count, as JSON; null for those that are not given."""
    return {alias: _plain(getattr(model, name)) for alias, name, _ in _counted(model)}


def changes(model: Model, recorded: Mapping[str, Any], prefix: str = "") -> Iterator[Change]:
    """What differs from the settings that `shaping` once returned.

    A field that was not known then was as it is by default.
    """
    for alias, name, field in _counted(model):
        before = recorded[alias] if alias in recorded else _plain(field.get_default(call_default_factory=True))
        yield from _between(getattr(model, name), before, f"{prefix}{alias}")


def _between(now: Any, before: Any, path: str) -> Iterator[Change]:
    if isinstance(now, Model) and isinstance(before, Mapping):
        yield from changes(now, before, f"{path}.")
    elif isinstance(now, tuple) and isinstance(before, list) and len(now) == len(before):
        for i, pair in enumerate(zip(now, before, strict=True)):
            yield from _between(*pair, f"{path}[{i}]")
    elif (plain := _plain(now)) != before:
        yield Change(path, before, plain)


def _counted(model: Model) -> Iterator[tuple[str, str, FieldInfo]]:
    for name, field in type(model).model_fields.items():
        if FREE not in field.metadata:
            yield field.alias or name, name, field


def _plain(value: Any) -> Any:
    if isinstance(value, Model):
        return shaping(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return None if value is PydanticUndefined else to_jsonable_python(value)
