"""The chart as Helm renders it, judged by helm-unittest, kubeconform, the docs and the operator's own arguments."""

import json
import re
from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_operator.__main__ import parse
from deepseek_operator.api import names
from deepseek_operator.crd import profile_crd, training_job_crd
from helm import schemas
from helm.render import CHART, MONITORED, ROOT, Manifest, manifests, program, rendered, run

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
NAMESPACED = {"watchNamespaces": ["a", "b"]}
FORBIDDEN_VERBS = {"*", "escalate", "bind", "impersonate"}
FORBIDDEN_RESOURCES = {"*", "secrets", "nodes", "persistentvolumes", "roles", "clusterroles", "serviceaccounts/token"}

NAMES = st.one_of(st.sampled_from(["y", "null", "1", "1e3", "0x1"]), st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True))
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "replicas": st.integers(1, 5),
        "watchNamespaces": st.lists(NAMES, unique=True, max_size=3),
        "fullnameOverride": st.sampled_from(["y", "null", "train-2"]),
        "imagePullSecrets": st.lists(st.builds(dict, name=NAMES), max_size=2),
        "crds": st.builds(dict, enabled=st.booleans(), keep=st.booleans()),
        "serviceAccount": st.builds(dict, name=NAMES, create=st.booleans(), annotations=st.dictionaries(NAMES, NAMES)),
        "rbac": st.builds(dict, aggregate=st.booleans(), profileReaders=st.lists(NAMES, unique=True, max_size=2)),
        "admission": st.builds(dict, enabled=st.booleans()),
        "networkPolicy": st.builds(
            dict,
            enabled=st.booleans(),
            apiServerCidrs=st.lists(st.sampled_from(["10.0.0.0/8", "fd00::/8"]), unique=True),
        ),
        "podDisruptionBudget": st.builds(dict, enabled=st.booleans()),
        "nodeSelector": st.dictionaries(NAMES, NAMES, max_size=2),
        "podLabels": st.dictionaries(NAMES, st.sampled_from(["yes", "1", "1e3", "null"]), max_size=2),
        "podAnnotations": st.dictionaries(NAMES, st.sampled_from(["yes", "1", "a: b", "#"]), max_size=2),
        "priorityClassName": NAMES,
        "schedulerName": NAMES,
        "runtimeClassName": NAMES,
        "security": st.builds(dict, userFrom=st.sampled_from(["Fixed", "Namespace"])),
        "monitoring": st.builds(
            dict,
            podMonitors=st.sampled_from(["always", "never", "auto"]),
            alerts=st.sampled_from(["always", "never", "auto"]),
            dashboard=st.booleans(),
            labels=st.dictionaries(NAMES, st.sampled_from(["yes", "1"]), max_size=2),
        ),
    },
)


@pytest.fixture(scope="session")
def kubeconform(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`kubeconform(text)`: what is wrong with the manifests in it."""
    directory = tmp_path_factory.mktemp("schemas")
    schemas.write(directory, {m["kind"] for m in manifests(MONITORED | NAMESPACED)})
    place = f"{directory}/{schemas.PATTERN}"

    def check(text: str, *options: str) -> str:
        return run(program("kubeconform"), "-strict", "-schema-location", place, *options, text=text).stdout

    return check


def test_helm_has_nothing_to_complain_about() -> None:
    done = run(program("helm"), "lint", "--strict", CHART)
    assert done.returncode == 0, done.stdout


def test_every_suite_of_helm_unittest_passes() -> None:
    done = run(program("helm-unittest"), CHART)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("values", [{}, MONITORED, MONITORED | NAMESPACED], ids=["default", "monitored", "namespaced"])
def test_every_object_keeps_to_the_schema_of_its_kind(kubeconform: Any, values: Manifest) -> None:
    assert kubeconform(rendered(values), "-skip", "CustomResourceDefinition") == ""


def test_the_schemas_refuse_a_field_that_a_kind_does_not_have(kubeconform: Any) -> None:
    text = rendered().replace("revisionHistoryLimit", "revisonHistoryLimit")
    assert "revisonHistoryLimit" in kubeconform(text, "-skip", "CustomResourceDefinition")


@pytest.mark.parametrize("file", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda file: file.stem)
def test_examples_keep_to_the_schemas_of_the_crds(tmp_path: Path, file: Path) -> None:
    for crd in (training_job_crd(), profile_crd()):
        for name, schema in schemas.of_crd(crd).items():
            (tmp_path / name).write_text(json.dumps(schema))
    place = f"{tmp_path}/{schemas.PATTERN}"
    done = run(program("kubeconform"), "-strict", "-schema-location", place, file)
    assert (done.returncode, done.stdout) == (0, "")


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(values=VALUES)
def test_any_valid_values_render_to_valid_objects_with_names_of_their_own(kubeconform: Any, values: Manifest) -> None:
    text = rendered(values)
    assert kubeconform(text, "-skip", "CustomResourceDefinition") == ""
    found = [m for m in yaml.load_all(text, Loader=yaml.CSafeLoader) if m]
    keys = [(m["kind"], m["metadata"].get("namespace"), m["metadata"]["name"]) for m in found]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": 0}, "/replicas"),
        ({"image": {"digest": "sha256:12"}}, "/image/digest"),
        ({"image": {"repository": "registry.local/operator:tag"}}, "/image/repository"),
        ({"watchNamespaces": ["a", "a"]}, "/watchNamespaces"),
        ({"monitoring": {"alerts": True}}, "/monitoring/alerts"),
        ({"admission": {"podCreators": ["a' || true || '"]}}, "/admission/podCreators"),
        ({"logLevel": "debug"}, "/logLevel"),
    ],
)
def test_helm_refuses_wrong_values_by_name(values: Manifest, complaint: str) -> None:
    done = run(program("helm"), "template", CHART, "--values", "-", text=yaml.safe_dump(values))
    assert done.returncode != 0
    assert complaint in done.stderr


def test_the_crds_reach_the_cluster_as_they_were_generated() -> None:
    text = re.sub(r"(?m)(: \d)e-(\d+)$", r"\1.0e-\2", rendered())  # 5e-05: a number to YAML 1.2 and Go, not to PyYAML
    documents = (m for m in yaml.load_all(text, Loader=yaml.CSafeLoader) if m)
    found = {m["metadata"]["name"]: m["spec"] for m in documents if m["kind"] == "CustomResourceDefinition"}
    assert found == {crd["metadata"]["name"]: crd["spec"] for crd in (training_job_crd(), profile_crd())}


@pytest.mark.parametrize(("values", "namespaces"), [({}, ()), (NAMESPACED, ("a", "b"))])
def test_the_operator_understands_the_arguments_of_its_deployment(values: Manifest, namespaces: Any) -> None:
    (deployment,) = (
        m for m in manifests(values | {"dnsNamespace": "dns", "dnsPorts": [1053]}) if m["kind"] == "Deployment"
    )
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    options, level = parse(container["args"])
    assert (options.namespaces, options.leader_elect) == (namespaces, True)
    assert (options.settings.dns_namespace, options.settings.dns_ports) == ("dns", (1053,))
    assert options.port == container["ports"][0]["containerPort"]
    assert level == "INFO"


def granted(found: list[Manifest], *, suffixes: tuple[str, ...] = ("", "-lease")) -> dict[str, set[str]]:
    """Verbs by resource of the operator's own roles."""
    rights: dict[str, set[str]] = defaultdict(set)
    roles = (m for m in found if m["kind"] in {"Role", "ClusterRole"})
    own = (m for m in roles if m["metadata"]["name"] in {f"op-deepseek-operator{suffix}" for suffix in suffixes})
    for rule in chain.from_iterable(role["rules"] for role in own):
        for resource in rule["resources"]:
            rights[resource] |= set(rule["verbs"])
    return rights


def documented() -> dict[str, set[str]]:
    table = OPERATIONS.split("| resources | verbs |")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?`) \| ([a-z, ]+?)(?: \(.*\))? \|$", table, re.MULTILINE)
    return {name: set(verbs.split(", ")) for names, verbs in rows for name in re.findall(r"`(.*?)`", names)}


@pytest.mark.parametrize("values", [{}, NAMESPACED], ids=["cluster", "namespaced"])
def test_the_operator_may_do_exactly_what_is_documented(values: Manifest) -> None:
    assert granted(manifests(values)) == documented()


@pytest.mark.parametrize("values", [{}, NAMESPACED], ids=["cluster", "namespaced"])
def test_no_role_of_the_chart_holds_a_right_that_opens_others(values: Manifest) -> None:
    rules = [rule for m in manifests(values) if m["kind"] in {"Role", "ClusterRole"} for rule in m["rules"]]
    assert not {verb for rule in rules for verb in rule["verbs"]} & FORBIDDEN_VERBS
    assert not {resource for rule in rules for resource in rule["resources"]} & FORBIDDEN_RESOURCES
    assert not {group for rule in rules for group in rule["apiGroups"]} & {"*", "rbac.authorization.k8s.io"}


def test_the_operator_may_touch_its_own_lease_only() -> None:
    (role,) = (m for m in manifests() if m["kind"] == "Role")
    named = [rule["resourceNames"] for rule in role["rules"] if set(rule["verbs"]) & {"get", "update"}]
    assert named == [[names.OPERATOR]]
    assert not [m for m in manifests() if m["kind"] == "Lease"]  # the operator makes it: Argo CD leaves Leases out
