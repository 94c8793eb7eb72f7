"""What runs on a node, with which settings."""

import json
from contextlib import suppress
from pathlib import Path

import network
from control import API, FORWARDING, component, listed, proxy_config
from layout import CGROUP, DNS_SERVICE, GPUS_PER_NODE, HAS_IPV6, SERVICES, STATE, Node
from machines import Plan
from pki import PKI

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
KUBELET_DIR = "/var/lib/kubelet"  # the device plugins' socket is always below it, whatever --root-dir says
# On the machine's disk, and new with each boot.
KEPT = {"containerd": "/var/lib/containerd", "kubelet": KUBELET_DIR, "pod-logs": "/var/log/pods"}
LOST = ("/run", "/var/lib/cni", "/var/log/containers")
PAUSE_IMAGE = "localhost/pause:1"


def plan(node: Node, programs: Path) -> Plan:
    """Everything that the node's first process has to know."""
    disk = STATE / node.name
    write_configs(node, disk)
    kubelet = [f"--kubeconfig={PKI}/{node.name}.conf", f"--config={disk}/kubelet.json", f"--node-ip={node_ips(node)}"]
    return {
        "name": node.name,
        "logs": str(node.logs),
        # Between pods of one node frames pass only the bridge; kube-proxy and the firewall must see them.
        "sysctls": FORWARDING | {"net/bridge/bridge-nf-call-iptables": "1", "net/bridge/bridge-nf-call-ip6tables": "1"},
        "mounts": mounts(disk),
        "components": [
            {"name": "containerd", "after": None, "command": ["containerd", "--config", f"{disk}/containerd.toml"]},
            component(programs, "kube-proxy", API, f"--config={disk}/kube-proxy.json"),
            component(programs, "kubelet", CONTAINERD_SOCKET, *kubelet, f"--hostname-override={node.name}"),
            component(programs, "gpus", None, f"--count={GPUS_PER_NODE}"),
            component(programs, "kube-router", f"{node.ip}:10250", *firewall_flags(node)),
        ],
    }


def node_ips(node: Node) -> str:
    return ",".join(str(address.ip) for address in node.addresses)


def firewall_flags(node: Node) -> list[str]:
    """Of kube-router only what enforces NetworkPolicies; routes and services are others' business here."""
    return [
        f"--kubeconfig={PKI}/kube-router.conf",
        f"--hostname-override={node.name}",
        "--run-firewall=true",
        "--run-router=false",
        "--run-service-proxy=false",
        f"--enable-ipv6={str(HAS_IPV6).lower()}",
        f"--service-cluster-ip-range={listed(SERVICES)}",
        "--metrics-port=0",
        "--health-port=0",
    ]


def mounts(disk: Path) -> list[list[str]]:
    """The usual paths, the node's own directories: what a power loss keeps is on the disk, the rest in memory."""
    for name in KEPT:
        (disk / name).mkdir(parents=True, exist_ok=True)
    return [[str(disk / name), target] for name, target in KEPT.items()] + [["tmpfs", target] for target in LOST]


def remove_mount_points() -> None:
    """Those left empty on the host; a machine has made them where they were missing."""
    for target in (*KEPT.values(), *LOST):
        with suppress(OSError):
            Path(target).rmdir()


def write_configs(node: Node, disk: Path) -> None:
    disk.mkdir(parents=True, exist_ok=True)
    (disk / "containerd.toml").write_text(containerd_config(disk))
    (disk / "kubelet.json").write_text(json.dumps(kubelet_config(node), indent=1))
    (disk / "kube-proxy.json").write_text(json.dumps(proxy_config(node.name)))
    network.write_cni(node, disk / "cni")


def containerd_config(disk: Path) -> str:
    return f"""version = 2
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{PAUSE_IMAGE}"
  restrict_oom_score_adj = true  # without CAP_SYS_RESOURCE no sandbox would start
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{disk}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
"""


def kubelet_config(node: Node) -> dict[str, object]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}/{node.name}",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{PKI}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{PKI}/{node.name}.crt",
        "tlsPrivateKeyFile": f"{PKI}/{node.name}.key",
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "failSwapOn": False,
        "nodeStatusUpdateFrequency": "2s",
        "nodeLeaseDurationSeconds": 8,
        # An image brought by hand cannot be pulled again: never collect one.
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }
