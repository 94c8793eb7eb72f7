"""The NetworkPolicy of a job, which says what its pods may talk to."""

import ipaddress
from collections.abc import Iterable
from typing import Final

from deepseek_operator.api.isolation import METADATA_NETWORKS, EgressRule
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.names import METRICS_PORT

# Some clusters answer DNS from a link-local address (NodeLocal DNSCache, Cloud DNS).  Only port 53 is opened there.
LINK_LOCAL_DNS: Final = "169.254.0.0/16"


def network_policy(blueprint: Blueprint, meta: Manifest) -> Manifest:
    """Pods may reach each other, DNS and the named destinations.  From outside only the metrics port is reachable."""
    same_job = {"podSelector": {"matchLabels": {labels.JOB_UID: blueprint.owner.uid}}}
    settings = blueprint.settings
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": meta,
        "spec": {
            **same_job,
            "policyTypes": ["Ingress", "Egress"],
            # All ports are open, because the kernel chooses those on which NCCL and gloo listen.
            "ingress": [{"from": [same_job]}, _metrics(settings)],
            "egress": [{"to": [same_job]}, *_dns(settings), *(_egress(rule) for rule in blueprint.egress)],
        },
    }


def _metrics(settings: Settings) -> Manifest:
    namespaces = ({"kubernetes.io/metadata.name": settings.operator_namespace}, {settings.monitoring_label: "true"})
    return {
        "from": [{"namespaceSelector": {"matchLabels": match}} for match in namespaces],
        "ports": [{"port": METRICS_PORT, "protocol": "TCP"}],
    }


def _dns(settings: Settings) -> tuple[Manifest, Manifest]:
    """The ways to the DNS pods, on the ports on which they listen behind their Service, and to a local cache."""
    namespace = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.dns_namespace}}}
    local = {"ipBlock": {"cidr": LINK_LOCAL_DNS}}
    return {"to": [namespace], "ports": _both(settings.dns_ports)}, {"to": [local], "ports": _both((53,))}


def _both(ports: Iterable[int]) -> list[Manifest]:
    return [{"port": port, "protocol": protocol} for port in ports for protocol in ("UDP", "TCP")]


def _egress(rule: EgressRule) -> Manifest:
    block: Manifest = {"cidr": rule.cidr}
    if holes := _metadata_inside(rule.cidr):
        block["except"] = holes
    ports = [{"port": port, "protocol": str(rule.protocol)} for port in rule.ports]
    return {"to": [{"ipBlock": block}], "ports": ports}


def _metadata_inside(cidr: str) -> list[str]:
    network = ipaddress.ip_network(cidr, strict=False)
    return [str(hole) for hole in METADATA_NETWORKS if hole.version == network.version and network.overlaps(hole)]
