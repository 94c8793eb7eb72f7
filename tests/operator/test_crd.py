"""The CRDs: structural, generated, and each rule the same in CEL and in Python."""

import copy
import ipaddress
import re
from collections.abc import Iterator
from typing import Any

import cel
import pytest
from pydantic import ValidationError

from deepseek_operator import apidocs, crd
from deepseek_operator.api.schema import Schema
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.jobs.status import JobStatus
from deepseek_operator.jobs.training_job import NAME_RULE, validation_messages
from deepseek_trainer.contract.rules import Model
from support.builders.operator import PROFILE, SPEC, a_training_job, merged
from support.samples import profiles
from support.samples.api import BOUNDS, IMMUTABLE, MUTABLE, NAMES, RULES

JOB = crd.training_job_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
PROFILE_SCHEMA = crd.profile_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
KEYED = {
    "type", "format", "description", "default", "enum", "pattern", "properties", "required", "items",
    "additionalProperties", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength",
    "minItems", "maxItems", "maxProperties", "anyOf", "x-kubernetes-int-or-string", "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys", "x-kubernetes-validations",
}  # fmt: skip


def defaulted(schema: Schema, value: Any) -> Any:
    """`value` after the API server filled in the defaults of `schema`, parents before their children."""
    if isinstance(value, dict) and "properties" in schema:
        filled = copy.deepcopy(
            {key: field["default"] for key, field in schema["properties"].items() if "default" in field}
        )
        filled |= value
        return {key: defaulted(schema["properties"].get(key, {}), item) for key, item in filled.items()}
    if isinstance(value, list):
        return [defaulted(schema["items"], item) for item in value]
    return value


def broken_rules(schema: Schema, value: Any, old: Any = None) -> Iterator[str]:
    """Messages of the CEL rules that `value` breaks, as the API server evaluates them after defaulting."""
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" not in rule["rule"]:
            context = {"self": value}
        elif old is None:
            continue
        else:
            context = {"self": value, "oldSelf": old}
        if not cel.evaluate(rule["rule"], cel.Context(context, KUBERNETES)):
            yield rule["message"]
    for key, field in schema.get("properties", {}).items():
        if isinstance(value, dict) and key in value:
            yield from broken_rules(field, value[key], (old or {}).get(key))
    for item in value if isinstance(value, list) else ():
        yield from broken_rules(schema["items"], item)


def is_cidr(text: str) -> bool:
    """Kubernetes' isCIDR as far as it is used; tests/e2e asks the real one."""
    try:
        address, _ = ipaddress.ip_interface(text).ip, ipaddress.ip_network(text, strict=False)
    except ValueError:
        return False
    return getattr(address, "ipv4_mapped", None) is None


def contains_cidr(outer: str, inner: str) -> bool:
    first, second = (ipaddress.ip_network(cidr, strict=False) for cidr in (outer, inner))
    return first.version == second.version and second.subnet_of(first)  # type: ignore[arg-type]


# The functions of Kubernetes' own libraries, of strings, lists and networks, that are used.
KUBERNETES = {"split": str.split, "sum": sum, "isCIDR": is_cidr, "cidr": str, "containsCIDR": contains_cidr}


def by_cel(spec: dict[str, Any], old: dict[str, Any] | None = None, root: Schema = JOB) -> list[str]:
    schema = root["properties"]["spec"]
    return list(broken_rules(schema, defaulted(schema, spec), defaulted(schema, old) if old else None))


def by_pydantic(spec: dict[str, Any], model: type[Model] = JobSpec) -> list[str]:
    try:
        model.model_validate(spec)
    except ValidationError as error:
        return [message.split(": ", 1)[1].split("; given: ")[0] for message in validation_messages(error)]
    return []


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for key, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}[]")


EVERY_NODE = [*nodes(JOB), *nodes(PROFILE_SCHEMA)]


def test_files_are_what_the_models_say() -> None:
    assert crd.main(["--check"]) == 0
    assert apidocs.main(["--check"]) == 0


def test_a_stale_file_is_found_and_rewritten(tmp_path: Any) -> None:
    path = tmp_path / "crds" / "a.yaml"
    assert crd.write({path: "new"}, check=True) == 1
    assert not path.exists()
    assert crd.write({path: "new"}, check=False) == 0
    assert crd.write({path: "new"}, check=True) == 0


def test_schemas_are_structural() -> None:
    for path, schema in EVERY_NODE:
        assert set(schema) <= KEYED, path
        assert ("type" in schema) != schema.get("x-kubernetes-int-or-string", False), path
        assert "anyOf" not in schema or schema["anyOf"] == [{"type": "integer"}, {"type": "string"}], path


def test_nothing_is_unbounded_because_that_makes_rules_too_dear_for_the_api_server() -> None:
    for path, schema in EVERY_NODE:
        if schema.get("type") == "array":
            assert "maxItems" in schema, path
            assert schema["x-kubernetes-list-type"] in {"atomic", "map"}, path
        if schema.get("type") == "string" and path not in {".apiVersion", ".kind"}:
            assert {"maxLength", "enum", "format", "pattern"} & set(schema), path
        assert "additionalProperties" not in schema or "maxProperties" in schema, path


def test_every_field_is_described() -> None:
    fields = [(path, schema) for path, schema in EVERY_NODE if not path.endswith(("[]", ".metadata"))]
    assert [path for path, schema in fields if not schema.get("description")] == []


def test_defaults_are_ones_the_field_accepts() -> None:
    for path, schema in EVERY_NODE:
        if "default" in schema:
            assert list(broken_rules(schema, defaulted(schema, schema["default"]))) == [], path
            assert not path.startswith(".status"), "the API server must not write our status"


def test_defaults_of_the_schema_are_those_of_the_models() -> None:
    schema = JOB["properties"]["spec"]
    filled = JobSpec.model_validate(SPEC).model_dump(mode="json", by_alias=True, exclude_none=True)
    assert defaulted(schema, SPEC) == filled


@pytest.mark.parametrize(("message", "holds", "breaks"), RULES)
def test_a_rule_is_the_same_in_cel_and_in_python(message: str, holds: dict[str, Any], breaks: dict[str, Any]) -> None:
    good, bad = merged(SPEC, holds), merged(SPEC, breaks)
    assert (by_cel(good), by_pydantic(good)) == ([], [])
    (from_cel,), (from_python,) = by_cel(bad), by_pydantic(bad)
    assert from_cel.startswith(message)
    assert from_python.lower() == from_cel.lower()


@pytest.mark.parametrize(("message", "holds", "breaks"), profiles.RULES)
def test_a_rule_of_profiles_is_the_same_in_cel_and_in_python(
    message: str, holds: dict[str, Any], breaks: dict[str, Any]
) -> None:
    good, bad = merged(PROFILE, holds), merged(PROFILE, breaks)
    assert (by_cel(good, root=PROFILE_SCHEMA), by_pydantic(good, ProfileSpec)) == ([], [])
    (from_cel,), (from_python,) = by_cel(bad, root=PROFILE_SCHEMA), by_pydantic(bad, ProfileSpec)
    assert from_cel.startswith(message)
    assert from_python.lower() == from_cel.lower()


@pytest.mark.parametrize("field", IMMUTABLE)
def test_what_the_trainer_reads_is_immutable(field: str) -> None:
    changed = merged(SPEC, {field: IMMUTABLE[field]})
    assert any(message.startswith(f"{field} is immutable") for message in by_cel(changed, old=SPEC))


def test_what_steers_a_run_may_change() -> None:
    assert by_cel(merged(SPEC, MUTABLE), old=SPEC) == []


def test_every_field_is_either_mutable_or_immutable() -> None:
    assert set(MUTABLE) | set(IMMUTABLE) == set(JOB["properties"]["spec"]["properties"])


def test_every_rule_has_a_sample() -> None:
    messages = {rule["message"] for _, schema in EVERY_NODE for rule in schema.get("x-kubernetes-validations", ())}
    prefixes = (
        *(message for message, _, _ in (*RULES, *profiles.RULES)),
        *(f"{field} is immutable" for field in IMMUTABLE),
        "metadata.name",
    )
    assert [message for message in messages if not message.startswith(prefixes)] == []


def test_every_field_of_a_profile_has_a_sample() -> None:
    sampled = {field for _, _, breaks in profiles.RULES for field in breaks}
    sampled |= {field for _, outside in profiles.BOUNDS for field in outside}
    assert sampled == set(PROFILE_SCHEMA["properties"]["spec"]["properties"])


@pytest.mark.parametrize(("name", "is_good"), NAMES)
def test_names_fit_into_host_names(name: str, is_good: bool) -> None:
    manifest = a_training_job(name=name)
    (rule,) = JOB["x-kubernetes-validations"]
    assert cel.evaluate(rule["rule"], {"self": manifest}) is is_good
    assert NAME_RULE.holds is not None
    assert NAME_RULE.holds(name) is is_good


@pytest.mark.parametrize(
    ("root", "model", "smallest", "inside", "outside"),
    [
        *((JOB, JobSpec, SPEC, *bound) for bound in BOUNDS),
        *((PROFILE_SCHEMA, ProfileSpec, PROFILE, *bound) for bound in profiles.BOUNDS),
    ],
)
def test_a_bound_is_the_same_in_the_schema_and_in_python(
    root: Schema, model: type[Model], smallest: dict[str, Any], inside: dict[str, Any], outside: dict[str, Any]
) -> None:
    schema = root["properties"]["spec"]
    for changes, is_good in ((inside, True), (outside, False)):
        spec = merged(smallest, changes)
        assert (by_pydantic(spec, model) == []) is is_good
        assert (list(out_of_bounds(schema, defaulted(schema, spec))) == []) is is_good


def out_of_bounds(schema: Schema, value: Any, path: str = "") -> Iterator[str]:
    """Paths of what the API server's schema validation refuses; only what these schemas use."""
    number, text = isinstance(value, int | float) and not isinstance(value, bool), isinstance(value, str)
    checks = {
        "minimum": lambda bound: not number or (value > bound if schema.get("exclusiveMinimum") else value >= bound),
        "maximum": lambda bound: not number or (value < bound if schema.get("exclusiveMaximum") else value <= bound),
        "minItems": lambda bound: len(value) >= bound,
        "maxItems": lambda bound: len(value) <= bound,
        "maxLength": lambda bound: not text or len(value) <= bound,
        "pattern": lambda pattern: not text or re.search(pattern, value) is not None,
        "enum": lambda values: value in values,
    }
    yield from (path for key, check in checks.items() if key in schema and not check(schema[key]))
    for key, item in value.items() if isinstance(value, dict) else ():
        field = schema.get("properties", {}).get(key) or schema.get("additionalProperties", {})
        yield from out_of_bounds(field, item, f"{path}.{key}")
    for item in value if isinstance(value, list) else ():
        yield from out_of_bounds(schema["items"], item, f"{path}[]")


def test_conditions_are_a_map_by_type() -> None:
    conditions = JOB["properties"]["status"]["properties"]["conditions"]
    assert (conditions["x-kubernetes-list-type"], conditions["x-kubernetes-list-map-keys"]) == ("map", ["type"])


def test_columns_name_fields_that_exist() -> None:
    for crd_, schema in ((crd.training_job_crd(), JOB), (crd.profile_crd(), PROFILE_SCHEMA)):
        paths = {path.replace("[]", "") for path, _ in nodes(schema)}
        for column in crd_["spec"]["versions"][0]["additionalPrinterColumns"]:
            path = re.sub(r"\[\?\(.*?\)\]", "", column["jsonPath"])
            assert path in paths or path.startswith(".metadata.")


def test_a_profile_is_read_as_its_schema_says() -> None:
    assert defaulted(PROFILE_SCHEMA["properties"]["spec"], PROFILE) == ProfileSpec.model_validate(PROFILE).model_dump(
        mode="json", by_alias=True, exclude_none=True
    )


def test_status_is_read_back_as_written() -> None:
    assert JobStatus.model_validate(JobStatus().manifest()) == JobStatus()
