"""The cluster's own network: a bridge inside the control machine, a cable from it to every other machine and the host.

host 10.243.0.254 ── dstj0 ─┐
node-0 10.243.0.10 ── eth0 ─┼─ br0 10.243.0.1 (control)
node-1 10.243.0.11 ── eth0 ─┘

Where the kernel has IPv6, 10.243.0.N is fd00:243::N as well.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from layout import CONTROL, HAS_IPV6, HOST, HOST_INTERFACE, NODES, SERVICES, Interface, Machine, Network, Node
from shell import run, succeeds

BRIDGE = "br0"
BRIDGE_MAC = "02:00:00:00:00:01"  # left alone it changes with each cable, and packets to the old one are lost


def attach(machine: Machine) -> None:
    """Make the machine's network namespace and plug it in.  The control machine comes first."""
    run("ip", "netns", "add", machine.namespace)
    run("ip", "-n", machine.namespace, "link", "set", "lo", "up")
    if machine == CONTROL:
        lay_bridge()
    else:
        lay_cable(machine)
    for other in NODES:
        if other != machine:
            add_routes(other.pods, other, "-n", machine.namespace)


def detach(machine: Machine) -> None:
    if machine == CONTROL:
        unplug(HOST_INTERFACE)
    else:
        unplug(machine.name, "-n", CONTROL.namespace)
    if machine.namespace in namespaces():
        run("ip", "netns", "delete", machine.namespace)


def unplug(end: str, *where: str) -> None:
    """Delete a cable by one of its ends; the kernel would do so too, a moment after the namespace is gone."""
    succeeds("ip", *where, "link", "delete", end)  # there may be none


def namespaces() -> list[str]:
    return [line.split()[0] for line in run("ip", "netns", "list").splitlines()]


def lay_bridge() -> None:
    inner = CONTROL.namespace
    run("ip", "-n", inner, "link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge")
    add_addresses(CONTROL.addresses, BRIDGE, "-n", inner)
    run("ip", "-n", inner, "link", "set", BRIDGE, "up")
    run("ip", "link", "add", HOST_INTERFACE, "type", "veth", "peer", "name", "host", "netns", inner)
    run("ip", "-n", inner, "link", "set", "host", "master", BRIDGE, "up")
    add_addresses(HOST, HOST_INTERFACE)
    run("ip", "link", "set", HOST_INTERFACE, "up")
    add_routes(SERVICES, CONTROL)
    for node in NODES:
        add_routes(node.pods, node)


def lay_cable(machine: Machine) -> None:
    outer = CONTROL.namespace
    run(
        "ip",
        "-n",
        outer,
        "link",
        "add",
        machine.name,
        "type",
        "veth",
        "peer",
        "name",
        "eth0",
        "netns",
        machine.namespace,
    )
    run("ip", "-n", outer, "link", "set", machine.name, "master", BRIDGE, "up")
    add_addresses(machine.addresses, "eth0", "-n", machine.namespace)
    run("ip", "-n", machine.namespace, "link", "set", "eth0", "up")
    if HAS_IPV6:
        close_link_local(machine)


def close_link_local(machine: Machine) -> None:
    """The kernel gives each pod an address that no NetworkPolicy knows; by it neighbours would answer, and the node."""
    for chain in ("FORWARD", "INPUT"):
        rule = ("-A", chain, "-d", "fe80::/10", "!", "-p", "ipv6-icmp", "-j", "REJECT")
        run("ip", "netns", "exec", machine.namespace, "ip6tables", "--wait", *rule)


def add_addresses(addresses: Iterable[Interface], device: str, *where: str) -> None:
    """Without asking first whether somebody has one of them, which takes a second."""
    for address in addresses:
        at_once = ["nodad"] if address.version == 6 else []
        run("ip", *where, "address", "add", str(address), "dev", device, *at_once)


def add_routes(networks: Iterable[Network], by: Machine, *where: str) -> None:
    for network, gateway in zip(networks, by.addresses, strict=True):
        run("ip", *where, "route", "add", str(network), "via", str(gateway.ip))


def cni_config(node: Node) -> str:
    """A bridge on the node, addresses from the node's ranges, no way out of the cluster."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": str(pods), "gateway": str(pods[1])}] for pods in node.pods],
        "routes": [{"dst": {4: "0.0.0.0/0", 6: "::/0"}[pods.version]} for pods in node.pods],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    return json.dumps({"cniVersion": "0.4.0", "name": "dstj", "plugins": [bridge]})


def write_cni(node: Node, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "10-dstj.conflist").write_text(cni_config(node))
