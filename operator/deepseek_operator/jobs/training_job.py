"""A DeepSeekTrainingJob as one pass reads it: parsed, or with the reasons why it cannot be parsed."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from pydantic import ValidationError

from deepseek_operator.jobs.spec import MAX_NAME_LENGTH, JobSpec
from deepseek_operator.jobs.status import JobStatus
from deepseek_operator.objects.observed import Owner, holders
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.names_elsewhere import value_for
from deepseek_trainer.contract.rules import Rule

_NAMES_THE_VALUE: Final = frozenset({"missing", "value_error", "too_short", "too_long"})  # pydantic's names of errors
_NAME: Final = "^[a-z]([-a-z0-9]*[a-z0-9])?$"
NAME_RULE: Final = Rule(
    f"size(self.metadata.name) <= {MAX_NAME_LENGTH} && self.metadata.name.matches('{_NAME}')",
    f"metadata.name becomes part of host names: at most {MAX_NAME_LENGTH} lower-case letters, digits and '-', "
    "a letter first, no '-' last",
    lambda name: len(name) <= MAX_NAME_LENGTH and re.fullmatch(_NAME[1:-1], name) is not None,
)


@dataclass(frozen=True, slots=True)
class TrainingJob:
    owner: Owner
    generation: int
    labels: Mapping[str, str]
    status: JobStatus
    parsed: JobSpec | None  # None: `problems` says why
    problems: tuple[str, ...] = ()  # one line each, with the field, the rule and the way out
    holders: tuple[str, ...] = ()  # finalizers of others that keep the job, which was deleted
    ttl_s: int | None = None  # read apart, so that a finished job is deleted even if its spec no longer parses

    @classmethod
    def read(cls, manifest: Mapping[str, Any]) -> Self:
        """Parse a manifest from the API server.  A spec that breaks a rule is no error: `problems` names the rule."""
        meta = manifest["metadata"]
        raw = manifest.get("spec") or {}
        parsed, problems = _parse(raw)
        if NAME_RULE.holds and not NAME_RULE.holds(meta["name"]):
            problems = (f"{NAME_RULE.message}; given: {shown(meta['name'])}", *problems)
        return cls(
            owner=Owner(meta["namespace"], meta["name"], meta["uid"]),
            generation=meta.get("generation", 0),
            labels=meta.get("labels") or {},
            status=JobStatus.model_validate(manifest.get("status") or {}),
            parsed=parsed,
            problems=problems,
            holders=holders(manifest),
            ttl_s=(raw.get("runPolicy") or {}).get("ttlSecondsAfterFinished"),
        )

    @property
    def spec(self) -> JobSpec:
        assert self.parsed is not None, "a job with problems has no spec to act on"
        return self.parsed


def _parse(raw: Mapping[str, Any]) -> tuple[JobSpec | None, tuple[str, ...]]:
    try:
        return JobSpec.model_validate(raw), ()
    except ValidationError as error:
        return None, validation_messages(error)


def validation_messages(error: Any) -> tuple[str, ...]:
    """One line for each problem of a pydantic ValidationError: the field, the rule and the value that breaks it."""
    found = error.errors(include_url=False)
    return tuple(_message(e) for e in found if not _is_echo(e, found))


def _is_echo(error: dict[str, Any], found: Iterable[dict[str, Any]]) -> bool:
    """Whether pydantic calls a list too short only because one of its items has an error."""
    place = error["loc"]
    return error["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in found
    )


def _message(error: dict[str, Any]) -> str:
    path = ".".join(["spec", *(str(part) for part in error["loc"] if part != "[key]")])
    rule = error["msg"].removeprefix("Value error, ")
    value = "" if error["type"] in _NAMES_THE_VALUE else f", not {shown(error['input'])}"
    return f"{path}: {rule[0].lower()}{rule[1:]}{value}{_meant(error)}"


def _meant(error: dict[str, Any]) -> str:
    """The value that was probably meant, where only some are allowed."""
    allowed = re.findall(r"'([^']+)'", str(error.get("ctx", {}).get("expected", "")))
    near = value_for(error.get("input"), allowed)
    return f", did you mean {near}" if near else ""
