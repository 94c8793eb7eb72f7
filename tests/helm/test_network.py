"""Who reaches the operator, and whom the operator reaches, under the chart's own NetworkPolicy."""

import ipaddress
import json
from pathlib import Path
from typing import Any

from deepseek_operator.jobs import labels
from deepseek_operator.objects.observed import Owner
from helm.render import NAMESPACE, RELEASE, Manifest, manifests
from support.judges import reachability

JOBS_POD = labels.of_job(Owner("ml", "job", "uid"))
TEST_POD = {"app.kubernetes.io/instance": RELEASE, "app.kubernetes.io/component": "test"}
METADATA = ipaddress.ip_address("169.254.169.254")
API_SERVER = ipaddress.ip_address("10.0.0.1")
BYSTANDERS = {
    "ml/stranger": {"app": "stranger"},
    "ml/worker": JOBS_POD,
    "kube-system/dns": {"app": "dns"},
    "prometheus/prometheus": {"app": "prometheus"},
    f"{NAMESPACE}/neighbour": {"app": "neighbour"},
    f"{NAMESPACE}/chart-test": TEST_POD,
}
HTTP = "{protocols:TCP,dst_ports:8080}"
INTO = {f"{NAMESPACE}/chart-test": HTTP, "prometheus/prometheus": HTTP}
PROGRESS = {"ml/worker": {9400}}
DNS = {"kube-system/dns": {53, 5353}}
PORTS = {443, 6443, 8443, 16443}


def ways(directory: Path, network_policy: Manifest) -> dict[str, Any]:
    """By bystander: how it reaches the operator's pod, and the ports on which that reaches it; then two addresses."""
    rendered = manifests({"networkPolicy": network_policy})
    (policy,) = (made for made in rendered if made["kind"] == "NetworkPolicy")
    (deployment,) = (made for made in rendered if made["kind"] == "Deployment")
    namespaces = {place.partition("/")[0] for place in BYSTANDERS}
    objects = [reachability.namespace(name, scraping(name)) for name in sorted(namespaces)]
    objects += [reachability.pod(*place.split("/"), also) for place, also in BYSTANDERS.items()]
    objects += [
        understood(policy),
        reachability.pod(NAMESPACE, "operator", deployment["spec"]["template"]["metadata"]["labels"]),
    ]
    found = reachability.computed(directory, objects)
    us = reachability.endpoint(NAMESPACE, "operator")
    ends = {place: reachability.endpoint(*place.split("/")) for place in BYSTANDERS}
    return {
        "into": {place: found[end, us] for place, end in ends.items() if (end, us) in found},
        "out": {place: reachability.ports_of(found[us, end]) for place, end in ends.items() if (us, end) in found},
        "metadata": reachability.ports_of(reachability.way_to(found, us, METADATA)),
        "API server": reachability.ports_of(reachability.way_to(found, us, API_SERVER)),
    }


def understood(policy: Manifest) -> Manifest:
    """The analyzer looks for what `Exists` in the policy's own namespace only; `In` all that there is says as much.

    Fails where there is nothing of that kind: the policy would not let the operator ask for progress.
    """
    exists = {"key": labels.JOB_UID, "operator": "Exists"}
    text = json.dumps(policy)
    assert json.dumps(exists) in text
    return dict(
        json.loads(text.replace(json.dumps(exists), json.dumps(exists | {"operator": "In", "values": ["uid"]})))
    )


def scraping(namespace: str) -> dict[str, str]:
    return {"training.dstj.io/monitoring": "true"} if namespace == "prometheus" else {}


def test_only_scrapers_and_the_charts_test_reach_the_operator(tmp_path: Path) -> None:
    assert ways(tmp_path, {})["into"] == INTO


def test_the_operator_reaches_dns_progress_and_the_named_api_server_only(tmp_path: Path) -> None:
    found = ways(tmp_path, {"apiServerCidrs": ["10.0.0.1/32"]})
    assert found["out"] == PROGRESS | DNS
    assert found["API server"] == PORTS
    assert found["metadata"] == {53}


def test_where_no_api_server_is_named_its_ports_are_open_everywhere(tmp_path: Path) -> None:
    found = ways(tmp_path, {})
    assert found["out"] == {place: PORTS | (PROGRESS | DNS).get(place, set()) for place in BYSTANDERS}
    assert found["metadata"] == PORTS | {53}, "the service itself listens on port 80"
