"""Everything that is wrong with the content of a job file, as the API server or a run would refuse it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from deepseek_operator.api.names import API_VERSION, KIND, PROFILE_KIND
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.spec import MAX_NAME_LENGTH, JobSpec
from deepseek_operator.jobs.training_job import validation_messages
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import first_line, shown
from deepseek_trainer.contract.names_elsewhere import field_for
from deepseek_trainer.contract.rules import Model, unknown_fields
from deepseek_trainer.training.schedule import refuse_endless_warmup

MODELS: dict[str, type[Model]] = {KIND: JobSpec, PROFILE_KIND: ProfileSpec}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAMESPACE_LENGTH = 63


def messages(content: Any) -> Iterator[str]:
    """A line for each problem: the field, the rule and the way out."""
    if not isinstance(content, dict):
        yield f"document: is a {type(content).__name__}, must be a mapping with apiVersion, kind, metadata and spec"
        return
    if content.get("apiVersion") != API_VERSION:
        yield f"apiVersion: {shown(content.get('apiVersion'))} must be {API_VERSION}"
    model = model_of(content.get("kind"))
    if model is None:
        yield f"kind: {shown(content.get('kind'))} must be {' or '.join(MODELS)}"
        return
    for key in content.keys() - {"apiVersion", "kind", "metadata", "spec", "status"}:
        elsewhere = field_for(str(key))
        yield f"{key}: unknown field" + (f": {elsewhere}" if elsewhere else ", known: apiVersion, kind, metadata, spec")
    yield from _metadata_messages(content.get("metadata"), content["kind"])
    yield from _spec_messages(model, content.get("spec"))


def model_of(kind: Any) -> type[Model] | None:
    return MODELS.get(kind) if isinstance(kind, str) else None


def _metadata_messages(metadata: Any, kind: str) -> Iterator[str]:
    if not isinstance(metadata, dict):
        yield "metadata: must be a mapping with a name"
        return
    name, namespace = metadata.get("name"), metadata.get("namespace", "default")
    longest = MAX_NAME_LENGTH if kind == KIND else MAX_NAMESPACE_LENGTH
    if not is_label(name, longest):
        yield f"metadata.name: {shown(name)} must be 1 to {longest} of a-z, 0-9 and '-', a letter first, no '-' last"
    if not is_label(namespace, MAX_NAMESPACE_LENGTH):
        yield f"metadata.namespace: {shown(namespace)} must be a DNS label: a-z, 0-9 and '-', at most 63"
    for field in ("labels", "annotations"):
        entries = metadata.get(field) or {}
        if not isinstance(entries, dict):
            yield f"metadata.{field}: {shown(entries)} must be a mapping"
            continue
        for key, value in entries.items():
            if not isinstance(value, str):
                yield f"metadata.{field}.{key}: {shown(value)} must be a string: put it in quotes"


def is_label(name: Any, longest: int) -> bool:
    return isinstance(name, str) and len(name) <= longest and DNS_LABEL.fullmatch(name) is not None


def _spec_messages(model: type[Model], spec: Any) -> Iterator[str]:
    if not isinstance(spec, dict):
        yield f"spec: {shown(spec)} must be a mapping"
        return
    try:
        text = json.dumps(spec, default=str)  # noqa: TID251  for the check below, which refuses NaN by its field
    except (ValueError, TypeError, RecursionError) as error:  # an anchor inside itself, bytes as a key
        yield f"spec: must be what JSON can say: {first_line(error).lower()}"
        return
    yield from unknown_fields(model, spec, "spec")
    try:
        # Strict, from JSON, as in the API server: "3" is no number and 1 is no boolean.
        checked = model.model_validate_json(text, strict=True)
    except ValidationError as error:
        yield from validation_messages(error)
    else:
        yield from _warmup_messages(checked)


def _warmup_messages(spec: Model) -> Iterator[str]:
    """What a run would refuse, as far as that needs no data."""
    if isinstance(spec, JobSpec) and spec.optimization.max_steps is not None:
        try:
            refuse_endless_warmup(spec.optimization, rows=1)
        except ConfigError as error:
            yield f"spec.{error.problem}: {error.hint}"
