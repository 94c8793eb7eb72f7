"""The chart's files, without Helm: what they say of each other and of the product.  tests/helm renders them."""

import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepseek_operator.api import names
from deepseek_operator.crd import profile_crd, training_job_crd
from deepseek_operator.jobs import decide, retry
from deepseek_operator.jobs.labels import JOB_NAME, JOB_UID
from deepseek_operator.jobs.spec import JobSpec
from deepseek_operator.jobs.worker_job import USER
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.names import METRICS_PORT
from deepseek_trainer.contract.rules import unknown_fields
from helm import readme

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "deepseek-operator"
TEMPLATES = [file for file in sorted((CHART / "templates").rglob("*")) if file.suffix in {".yaml", ".txt"}]
SUITES = "\n".join(file.read_text() for file in sorted((CHART / "tests").glob("*_test.yaml")))
META = yaml.safe_load((CHART / "Chart.yaml").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
SCHEMA = yaml.safe_load((CHART / "values.schema.json").read_text())
ALERTS = [
    rule for group in yaml.safe_load((CHART / "files" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
DESCRIBED = [path for path, _ in readme.described((CHART / "values.yaml").read_text())]


def set_by_people(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of values, down to those that have a description."""
    for name, value in values.items():
        path = f"{prefix}{name}"
        if path in DESCRIBED or not isinstance(value, dict):
            yield path
        else:
            yield from set_by_people(value, f"{path}.")


def allowed(schema: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Paths of the schema's values, down to those that have a description."""
    for name, inner in schema["properties"].items():
        path = f"{prefix}{name}"
        if path in DESCRIBED or "properties" not in inner:
            yield path
        else:
            yield from allowed(inner, f"{path}.")


def objects(schema: Any) -> list[dict[str, Any]]:
    """Every schema of an object with fields of its own in `schema`, itself among them."""
    if not isinstance(schema, dict):
        return []
    inner = [found for value in schema.values() for found in objects(value)]
    return [schema, *inner] if schema.get("type") == "object" and "properties" in schema else inner


def test_every_value_is_described_once_and_shown_in_the_readme() -> None:
    assert list(set_by_people(VALUES)) == DESCRIBED
    assert readme.README.read_text() == readme.wanted(), "run `make docs`"


def test_the_schema_has_the_values_and_no_others() -> None:
    assert set(allowed(SCHEMA)) == {*DESCRIBED, "global"}
    assert [schema for schema in objects(SCHEMA) if schema.get("additionalProperties") is not False] == []


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda file: file.stem)
def test_every_template_has_a_suite(template: Path) -> None:
    assert str(template.relative_to(CHART / "templates")) in SUITES


@pytest.mark.parametrize("value", DESCRIBED)
def test_every_value_is_read_by_a_template(value: str) -> None:
    texts = (file.read_text() for file in sorted((CHART / "templates").rglob("*")) if file.is_file())
    assert re.search(rf"\.Values\.{re.escape(value)}\b", "\n".join(texts))


def test_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert META["version"] == META["appVersion"] == project["version"]
    assert META["annotations"]["artifacthub.io/license"] == project["license"]


def test_the_catalogue_entry_lists_the_crds_and_a_valid_job() -> None:
    listed = {crd["name"]: crd["kind"] for crd in yaml.safe_load(META["annotations"]["artifacthub.io/crds"])}
    made = (training_job_crd(), profile_crd())
    assert listed == {crd["metadata"]["name"]: crd["spec"]["names"]["kind"] for crd in made}
    (example,) = yaml.safe_load(META["annotations"]["artifacthub.io/crdsExamples"])
    assert list(unknown_fields(JobSpec, example["spec"])) == []
    JobSpec.model_validate(example["spec"])


@pytest.mark.parametrize(
    ("file", "constant"),
    [
        ("rbac/lease.yaml", f"resourceNames: [{names.OPERATOR}]"),
        ("networkpolicy.yaml", f"port: {METRICS_PORT},"),
        ("networkpolicy.yaml", f'{Settings().monitoring_label}: "true"'),
        ("networkpolicy.yaml", f"key: {JOB_UID},"),
        ("admission/labels.yaml", f"?'{JOB_UID}'"),
        ("monitoring/podmonitors.yaml", f"key: {JOB_UID},"),
        ("monitoring/podmonitors.yaml", f"label_{re.sub('[./-]', '_', JOB_NAME)}]"),
        ("_names.tpl", f"runAsUser: {USER}\n"),
    ],
)
def test_templates_use_the_names_and_numbers_of_the_code(file: str, constant: str) -> None:
    assert constant in (CHART / "templates" / file).read_text()


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_every_alert_is_explained_and_leads_to_what_to_do(rule: dict[str, Any]) -> None:
    page, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"^#+ (.*)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["description"]


def test_the_failure_alert_knows_every_reason_with_which_a_started_job_fails() -> None:
    (rule,) = (rule for rule in ALERTS if rule["alert"] == "DeepSeekJobFailed")
    source = inspect.getsource(decide) + inspect.getsource(retry)
    given = re.findall(r'gave_up\(facts, status, "(\w+)"|reason, limit = "(\w+)"', source)
    assert {first or second for first, second in given} == set(
        re.findall(r'reason=~"(.*?)"', rule["expr"])[0].split("|")
    )
