"""Turns a pydantic model into a structural schema, which is the dialect of JSON Schema that CRDs understand.

The dialect has no references, no null, no `const`, no numeric `exclusiveMinimum` and no pattern for keys.  The default
of an object is written as `{}` where the defaults of its fields make up the rest: the API server fills those in.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from deepseek_trainer.contract.rules import Model, Rule

Schema = dict[str, Any]

_KEPT: Final[tuple[str, ...]] = (
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "maxProperties",
    "x-kubernetes-validations",
)


def structural(model: type[Model], *, defaults: bool = True) -> Schema:
    """The schema of `model` and of everything in it, without `defaults` for what the operator alone writes."""
    raw = model.model_json_schema(by_alias=True)
    return _Converter(raw.get("$defs", {}), defaults).model(raw, model)


def validations(rules: tuple[Rule, ...]) -> Schema:
    """The CEL rules of a model, in the form in which a schema holds them."""
    return {"x-kubernetes-validations": [{"rule": r.cel, "message": r.message} for r in rules]} if rules else {}


class _Converter:
    def __init__(self, definitions: Mapping[str, Schema], defaults: bool) -> None:
        self._definitions, self._defaults = definitions, defaults
        self._models = {model.__name__: model for model in _subclasses(Model)}

    def model(self, raw: Schema, model: type[Model]) -> Schema:
        properties = {}
        for name, field in model.model_fields.items():
            alias = field.alias or name
            properties[alias] = self._field(raw["properties"][alias], field.get_default(), field.is_required())
        return {
            "type": "object",
            "description": _one_line(model.__doc__ or ""),
            **({"required": raw["required"]} if raw.get("required") else {}),
            "properties": properties,
            **validations(model.rules),
        }

    def _field(self, raw: Schema, default: Any, is_required: bool) -> Schema:
        schema = self._value(raw)
        if description := raw.get("description"):
            schema["description"] = _one_line(description)
        if self._defaults and not is_required and default is not None:
            schema["default"] = _object_default(default) if isinstance(default, BaseModel) else raw["default"]
        return schema

    def _value(self, raw: Schema) -> Schema:
        if "$ref" in raw:
            return self._reference(raw["$ref"].rsplit("/", 1)[1])
        if raw.get("x-kubernetes-int-or-string"):
            return _int_or_string(raw)
        if "anyOf" in raw:
            (only,) = (option for option in raw["anyOf"] if option != {"type": "null"})
            return self._value(only)
        schema: Schema = {key: raw[key] for key in _KEPT if key in raw}
        for bound, old in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
            if old in raw:
                schema |= {bound: raw[old], old: True}
        if raw.get("type") == "array":
            schema |= {"items": self._value(raw["items"])} | self._list_type(raw["items"])
        if raw.get("type") == "integer":
            schema["format"] = "int64"
        if "patternProperties" in raw:
            (value,) = raw["patternProperties"].values()
            schema["additionalProperties"] = self._value(value)
        if isinstance(value := raw.get("additionalProperties"), dict):
            schema["additionalProperties"] = self._value(value)
        return schema

    def _reference(self, name: str) -> Schema:
        raw = self._definitions[name]
        return self.model(raw, self._models[name]) if raw["type"] == "object" else self._value(raw)

    def _list_type(self, items: Schema) -> Schema:
        """A list belongs to one writer as a whole, unless its items have a key."""
        model = self._models.get(items.get("$ref", "").rsplit("/", 1)[-1])
        if keys := getattr(model, "list_map_keys", ()):
            return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}
        return {"x-kubernetes-list-type": "atomic"}


def _subclasses(model: type[Model]) -> Iterator[type[Model]]:
    for child in model.__subclasses__():
        yield child
        yield from _subclasses(child)


def _int_or_string(raw: Schema) -> Schema:
    """The one `anyOf` that CRDs allow, with its bounds beside it."""
    bounds = {key: raw[key] for key in _KEPT if key in raw}
    return {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}], **bounds}


def _object_default(default: BaseModel) -> Schema:
    return default.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)


def _one_line(text: str) -> str:
    return " ".join(text.split())
