"""Who is in the cluster, at which address, and where its files are."""

import os
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Final

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

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
HAS_IPV6: Final = Path("/proc/sys/net/ipv6").exists()
PODS: Final = (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:244::/48"))[: 1 + HAS_IPV6]
SERVICES: Final = (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:96::/112"))[: 1 + HAS_IPV6]
KUBERNETES_SERVICE: Final = "10.96.0.1"
DNS_SERVICE: Final = "10.96.0.10"
GPUS_PER_NODE: Final = 4


def addresses_of(number: int) -> tuple[Interface, ...]:
    """Of the machine with that number on the cluster's own network."""
    return (IPv4Interface(f"10.243.0.{number}/24"), IPv6Interface(f"fd00:243::{number}/64"))[: 1 + HAS_IPV6]


@dataclass(frozen=True)
class Machine:
    """One set of namespaces that stands for a computer: its own network, mounts and processes."""

    name: str
    number: int

    @property
    def addresses(self) -> tuple[Interface, ...]:
        """One of IPv4; where the kernel has it, one of IPv6."""
        return addresses_of(self.number)

    @property
    def ip(self) -> str:
        return str(self.addresses[0].ip)

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

    @property
    def pods(self) -> tuple[Network, ...]:
        """The addresses of its pods, in both families."""
        index = self.number - FIRST_NODE
        return (IPv4Network(f"10.244.{index}.0/24"), IPv6Network(f"fd00:244:0:{index}::/64"))[: 1 + HAS_IPV6]


FIRST_NODE: Final = 10
CONTROL: Final = Machine("control", 1)
NODES: Final = tuple(Node(f"node-{i}", FIRST_NODE + i) for i in range(2))
HOST: Final = addresses_of(254)
API_SERVER: Final = f"https://{CONTROL.ip}:6443"


def node(name: str) -> Node:
    """The node called `node-0` or just `0`.  Raises KeyError."""
    return {known.name: known for known in NODES}[f"node-{name.removeprefix('node-')}"]
