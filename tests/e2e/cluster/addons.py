"""What the cluster's admin applies before anybody else: names, the firewall's rights, a storage class."""

from pathlib import Path

from layout import DNS_SERVICE

Manifest = dict[str, object]

SYSTEM = "kube-system"
DNS_LABELS = {"k8s-app": "kube-dns"}
DNS_PORTS = (("dns", "UDP"), ("dns-tcp", "TCP"))
# Names of pods, and a page that says whether they are known already.
COREFILE = """.:53 {
  errors
  ready
  kubernetes cluster.local in-addr.arpa {
    ttl 1
  }
  cache 1
}
"""


def addons(programs: Path, pause_image: str) -> Manifest:
    storage = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": "local", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
        "provisioner": "dstj.io/hostpath",
    }
    return {"apiVersion": "v1", "kind": "List", "items": [*firewall(), *dns(programs, pause_image), storage]}


def firewall() -> list[Manifest]:
    """What kube-router may read; there is nothing that it may write."""
    rules = [
        rule("", "endpoints", "namespaces", "nodes", "pods", "services"),
        rule("networking.k8s.io", "networkpolicies"),
        rule("discovery.k8s.io", "endpointslices"),
    ]
    return rights("kube-router", rules, {"kind": "User", "name": "system:kube-router"})


def dns(programs: Path, pause_image: str) -> list[Manifest]:
    """Name servers as pods, as NetworkPolicies expect them: one on each node, which asks its own first."""
    meta = {"name": "kube-dns", "namespace": SYSTEM}
    service = {
        "clusterIP": DNS_SERVICE,
        "selector": DNS_LABELS,
        "ports": [{"name": name, "port": 53, "protocol": protocol} for name, protocol in DNS_PORTS],
        # A dead node's name server stays listed for a while: no other node is to ask it.
        "trafficDistribution": "PreferSameNode",
    }
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "coredns", "namespace": SYSTEM}},
        *rights(
            "coredns",
            [rule("", "namespaces", "pods", "services"), rule("discovery.k8s.io", "endpointslices")],
            {"kind": "ServiceAccount", "name": "coredns", "namespace": SYSTEM},
        ),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "coredns", "namespace": SYSTEM},
            "data": {"Corefile": COREFILE},
        },
        {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": service},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta, "spec": dns_set(programs, pause_image)},
    ]


def dns_set(programs: Path, pause_image: str) -> Manifest:
    pod = {
        "serviceAccountName": "coredns",
        "priorityClassName": "system-node-critical",
        "dnsPolicy": "Default",
        "tolerations": [{"operator": "Exists"}],
        "terminationGracePeriodSeconds": 1,
        "containers": [dns_container(pause_image)],
        "volumes": [
            {"name": "programs", "hostPath": {"path": str(programs), "type": "Directory"}},
            {"name": "config", "configMap": {"name": "coredns"}},
        ],
    }
    return {"selector": {"matchLabels": DNS_LABELS}, "template": {"metadata": {"labels": DNS_LABELS}, "spec": pod}}


def dns_container(pause_image: str) -> Manifest:
    """An image with nothing in it, and the cluster's own program mounted: nothing has to be packed or copied."""
    ports = [{"name": name, "containerPort": 53, "protocol": protocol} for name, protocol in DNS_PORTS]
    return {
        "name": "coredns",
        "image": pause_image,
        "command": ["/programs/coredns", "-conf", "/config/Corefile"],
        "ports": ports,
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]},
        },
        "volumeMounts": [
            {"name": "programs", "mountPath": "/programs", "readOnly": True},
            {"name": "config", "mountPath": "/config", "readOnly": True},
        ],
    }


def rule(group: str, *resources: str) -> Manifest:
    return {"apiGroups": [group], "resources": [*resources], "verbs": ["get", "list", "watch"]}


def rights(name: str, rules: list[Manifest], subject: Manifest) -> list[Manifest]:
    api = "rbac.authorization.k8s.io"
    role = {"apiGroup": api, "kind": "ClusterRole", "name": name}
    return [
        {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules},
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": role,
            "subjects": [subject],
        },
    ]
