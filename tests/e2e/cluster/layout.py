"""Who is in the cluster, at which address, and where its files are."""

import os
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
SOURCE: Final = HERE / "kube"
STATE: Final = Path(os.environ.get("DSTJ_CLUSTER_STATE", "/var/lib/dstj-cluster"))
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dstj" / "cluster"
KUBECONFIG: Final = STATE / "pki" / "admin.conf"
PROGRAMS: Final = STATE / "bin"  # link to the programs that run: kubectl for one
AUDIT_LOG: Final = STATE / "logs" / "control" / "audit.log"
VOLUMES: Final = STATE / "volumes"  # every PersistentVolume is a directory in here, on all nodes
CGROUP: Final = "dstj-cluster"

HOST_INTERFACE: Final = "dstj0"  # the only thing that the cluster adds to the host's network
HOST: Final = IPv4Interface("10.243.0.254/24")
PODS: Final = IPv4Network("10.244.0.0/16")
SERVICES: Final = IPv4Network("10.96.0.0/16")
KUBERNETES_SERVICE: Final = "10.96.0.1"
DNS_SERVICE: Final = "10.96.0.10"
GPUS_PER_NODE: Final = 4


@dataclass(frozen=True)
class Machine:
    """One set of namespaces that stands for a computer: its own network, mounts and processes."""

    name: str
    address: IPv4Interface

    @property
    def ip(self) -> str:
        return str(self.address.ip)

    @property
    def namespace(self) -> str:
        return f"dstj-{self.name}"

    @property
    def plan(self) -> Path:
        return STATE / self.name / "plan.json"

    @property
    def logs(self) -> Path:
        return STATE / "logs" / self.name


@dataclass(frozen=True)
class Node(Machine):
    """A machine that runs pods."""

    pods: IPv4Network

    @property
    def gateway(self) -> IPv4Interface:
        return IPv4Interface(f"{self.pods[1]}/{self.pods.prefixlen}")


CONTROL: Final = Machine("control", IPv4Interface("10.243.0.1/24"))
NODES: Final = tuple(
    Node(f"node-{i}", IPv4Interface(f"10.243.0.{10 + i}/24"), IPv4Network(f"10.244.{i}.0/24")) for i in range(2)
)
API_SERVER: Final = f"https://{CONTROL.ip}:6443"


def node(name: str) -> Node:
    """The node called `node-0` or just `0`.  Raises KeyError."""
    return {known.name: known for known in NODES}[f"node-{name.removeprefix('node-')}"]
