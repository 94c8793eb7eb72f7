"""The cluster's own network: a bridge inside the control machine, a cable from it to every other machine and the host.

host 10.243.0.254 ── dstj0 ─┐
node-0 10.243.0.10 ── eth0 ─┼─ br0 10.243.0.1 (control)
node-1 10.243.0.11 ── eth0 ─┘
"""

import json
from pathlib import Path

from layout import CONTROL, HOST, HOST_INTERFACE, NODES, SERVICES, Machine, Node
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
            add_route(machine.namespace, other)


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
    run("ip", "-n", inner, "address", "add", str(CONTROL.address), "dev", BRIDGE)
    run("ip", "-n", inner, "link", "set", BRIDGE, "up")
    run("ip", "link", "add", HOST_INTERFACE, "type", "veth", "peer", "name", "host", "netns", inner)
    run("ip", "-n", inner, "link", "set", "host", "master", BRIDGE, "up")
    run("ip", "address", "add", str(HOST), "dev", HOST_INTERFACE)
    run("ip", "link", "set", HOST_INTERFACE, "up")
    run("ip", "route", "add", str(SERVICES), "via", CONTROL.ip)
    for node in NODES:
        add_route(None, node)


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
    run("ip", "-n", machine.namespace, "address", "add", str(machine.address), "dev", "eth0")
    run("ip", "-n", machine.namespace, "link", "set", "eth0", "up")


def add_route(namespace: str | None, node: Node) -> None:
    where = ["-n", namespace] if namespace else []
    run("ip", *where, "route", "add", str(node.pods), "via", node.ip)


def cni_config(node: Node) -> str:
    """A bridge on the node, addresses from the node's range, no way out of the cluster."""
    ipam = {
        "type": "host-local",
        "ranges": [[{"subnet": str(node.pods), "gateway": str(node.gateway.ip)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "hairpinMode": True, "ipam": ipam}
    return json.dumps({"cniVersion": "0.4.0", "name": "dstj", "plugins": [bridge]})


def write_cni(node: Node, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "10-dstj.conflist").write_text(cni_config(node))
