"""Who reaches whom under NetworkPolicies, as an independent analyzer computes it."""

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from nca.nca_cli import nca_main

Manifest = dict[str, Any]
Ways = dict[tuple[str, str], str]  # (source, target) -> connections, all as the analyzer writes them
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

EVERYTHING = "All connections"
NOTHING = "No connections"


def computed(directory: Path, objects: Iterable[Manifest]) -> Ways:
    """Between the namespaces, pods and policies of `objects`; others are addresses or ranges `first-last`."""
    file, result = directory / "objects.yaml", directory / "ways.txt"
    file.write_text(yaml.safe_dump_all(objects))
    result.unlink(missing_ok=True)  # the analyzer appends
    where = [f"--{flag}={file}" for flag in ("connectivity", "pod_list", "ns_list")]
    nca_main([*where, "--output_format=txt_no_fw_rules", f"--file_out={result}", "--return_0"])
    ways: Ways = {}
    for source, target, way in re.findall(r"^(\S+) => (\S+) : (.+)$", result.read_text(), re.MULTILINE):
        ways[source, target] = " ".join(filter(None, (ways.get((source, target)), way)))  # a line for each protocol
    return ways


def way_to(ways: Ways, source: str, address: Address) -> str:
    """From a pod to an address outside the cluster."""
    return next(
        (way for (start, target), way in ways.items() if start == source and contains(target, address)), NOTHING
    )


def contains(target: str, address: Address) -> bool:
    """Whether `target` is an address or a range of them that has `address` in it."""
    first, _, last = target.partition("-")
    try:
        low, high = ipaddress.ip_address(first), ipaddress.ip_address(last or first)
    except ValueError:
        return False
    return low.version == address.version and int(low) <= int(address) <= int(high)


def ports_of(way: str) -> set[int]:
    """The TCP and UDP ports of a way that is limited to some."""
    return {int(port) for ports in re.findall(r"dst_ports:([\d,]+)", way) for port in ports.split(",") if port}


def endpoint(namespace: str, pod: str) -> str:
    return f"{namespace}/{pod}[Pod]"


def namespace(name: str, also: dict[str, str]) -> Manifest:
    meta = {"name": name, "labels": {"kubernetes.io/metadata.name": name, **also}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}


def pod(namespace: str, name: str, labels: dict[str, str]) -> Manifest:
    """Each has a label of its own: the analyzer takes pods of the same labels for one."""
    meta = {"name": name, "namespace": namespace, "labels": labels | {"name": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [{"name": "only"}]}}
