"""JSON schemas for kubeconform, from what the makers of the kinds publish.

Kubernetes' own kinds come from the OpenAPI document of its Go module, in the version of the cluster of tests/e2e;
those of the Prometheus operator from its CRDs.  All are closed: a field that is not in the schema is an error.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from helm import tools

Schema = dict[str, Any]

KUBERNETES: Final = ("k8s.io/kubernetes", "v1.34.4")
PROMETHEUS_OPERATOR: Final = ("github.com/prometheus-operator/prometheus-operator", "v0.92.1")
# kubeconform's name of the file of a kind.
PATTERN: Final = "{{.ResourceKind}}{{.KindSuffix}}.json"
INT_OR_STRING: Final[Schema] = {"type": ["integer", "string"]}
QUANTITY: Final[Schema] = {"type": ["number", "string"]}


def write(directory: Path, kinds: Collection[str]) -> None:
    """Files of Kubernetes' kinds that are named and of the Prometheus operator's, and one with what they share."""
    document = json.loads((tools.module(*KUBERNETES) / "api/openapi-spec/swagger.json").read_text())
    definitions: dict[str, Schema] = document["definitions"]
    definitions["io.k8s.apimachinery.pkg.api.resource.Quantity"] = QUANTITY
    files, used = {}, set()
    for name, schema in definitions.items():
        for gvk in schema.get("x-kubernetes-group-version-kind", ()):
            if gvk["kind"] in kinds:
                files[_file(gvk["group"], gvk["version"], gvk["kind"])] = {
                    "$ref": f"definitions.json#/definitions/{name}"
                }
                used |= reachable(name, definitions)
    files["definitions.json"] = {"definitions": {name: closed(definitions[name]) for name in used}}
    examples = tools.module(*PROMETHEUS_OPERATOR) / "example" / "prometheus-operator-crd"
    for plural in ("podmonitors", "prometheusrules"):
        files |= of_crd(yaml.load((examples / f"monitoring.coreos.com_{plural}.yaml").read_text(), yaml.CSafeLoader))
    for file, schema in files.items():
        (directory / file).write_text(json.dumps(schema))


def reachable(start: str, definitions: Mapping[str, Schema]) -> set[str]:
    """Names of the definitions that `start` is built of, itself among them."""
    found, open_ends = {start}, [start]
    while open_ends:
        names = re.findall(r'"#/definitions/(.*?)"', json.dumps(definitions[open_ends.pop()]))
        open_ends += [name for name in set(names) if name not in found]
        found |= set(names)
    return found


def of_crd(crd: Schema) -> dict[str, Schema]:
    """File and schema of each version of a custom resource."""
    spec = crd["spec"]
    return {
        _file(spec["group"], version["name"], spec["names"]["kind"]): closed(version["schema"]["openAPIV3Schema"])
        for version in spec["versions"]
    }


def _file(group: str, version: str, kind: str) -> str:
    suffix = [group.partition(".")[0], version] if group else [version]
    return "-".join([kind.lower(), *suffix]) + ".json"


def closed(schema: Any) -> Any:
    """`schema` in JSON Schema's own words, with every object closed that lists its properties."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {"$ref": schema["$ref"].replace("#/definitions/", "definitions.json#/definitions/")}
    if schema.get("format") == "int-or-string" or schema.get("x-kubernetes-int-or-string"):
        return INT_OR_STRING
    result = {name: _inside(name, value) for name, value in schema.items()}
    if "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    return result


def _inside(name: str, value: Any) -> Any:
    """Below `properties`, names are the user's; everywhere else they are keywords."""
    return {key: closed(inner) for key, inner in value.items()} if name == "properties" else closed(value)
