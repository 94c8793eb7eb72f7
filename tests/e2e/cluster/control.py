"""What runs on the control machine, with which settings."""

import json
from collections.abc import Iterable
from pathlib import Path

from layout import AUDIT_LOG, CONTROL, KUBECONFIG, PODS, SERVICES, STATE, VOLUMES, Network
from machines import Plan
from pki import PKI

ETCD = "127.0.0.1:2379"
API = f"{CONTROL.ip}:6443"
CONFIG = STATE / CONTROL.name
FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}


def plan(programs: Path) -> Plan:
    """Everything that the control machine's first process has to know."""
    write_configs()
    return {
        "name": CONTROL.name,
        "logs": str(CONTROL.logs),
        # A frame that only passes the bridge is none of kube-proxy's business here.
        "sysctls": FORWARDING | {"net/bridge/bridge-nf-call-iptables": "0", "net/bridge/bridge-nf-call-ip6tables": "0"},
        "mounts": [["tmpfs", "/run"]],
        "components": [
            component(programs, "etcd", None, f"--data-dir={STATE}/etcd"),
            component(programs, "kube-apiserver", ETCD, *api_server_flags()),
            component(programs, "kube-controller-manager", API, *controller_manager_flags()),
            component(
                programs, "kube-scheduler", API, f"--kubeconfig={PKI}/kube-scheduler.conf", "--leader-elect=false"
            ),
            component(programs, "provisioner", API, f"--kubeconfig={KUBECONFIG}", f"--dir={VOLUMES}"),
            component(programs, "kube-proxy", API, f"--config={CONFIG}/kube-proxy.json"),
        ],
    }


def component(programs: Path, name: str, after: str | None, *flags: str) -> dict[str, object]:
    return {"name": name, "after": after, "command": [str(programs / name), *flags]}


def listed(networks: Iterable[Network]) -> str:
    """As components take them: one of each family that there is."""
    return ",".join(map(str, networks))


def api_server_flags() -> list[str]:
    return [
        f"--etcd-servers=http://{ETCD}",
        "--secure-port=6443",
        "--bind-address=0.0.0.0",
        f"--advertise-address={CONTROL.ip}",
        f"--client-ca-file={PKI}/ca.crt",
        f"--tls-cert-file={PKI}/apiserver.crt",
        f"--tls-private-key-file={PKI}/apiserver.key",
        f"--service-account-key-file={PKI}/service-accounts.pub",
        f"--service-account-signing-key-file={PKI}/service-accounts.key",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        f"--service-cluster-ip-range={listed(SERVICES)}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        f"--kubelet-certificate-authority={PKI}/ca.crt",
        f"--kubelet-client-certificate={PKI}/admin.crt",
        f"--kubelet-client-key={PKI}/admin.key",
        "--kubelet-preferred-address-types=InternalIP",
        # A dead node's pods are given up after 10 s, not 5 minutes: tests wait for it.
        "--default-not-ready-toleration-seconds=10",
        "--default-unreachable-toleration-seconds=10",
        f"--audit-policy-file={CONFIG}/audit-policy.json",
        f"--audit-log-path={AUDIT_LOG}",
    ]


def controller_manager_flags() -> list[str]:
    return [
        f"--kubeconfig={PKI}/kube-controller-manager.conf",
        f"--service-account-private-key-file={PKI}/service-accounts.key",
        f"--root-ca-file={PKI}/ca.crt",
        f"--cluster-signing-cert-file={PKI}/ca.crt",
        f"--cluster-signing-key-file={PKI}/ca.key",
        "--leader-elect=false",
        "--use-service-account-credentials",
        "--node-monitor-period=2s",
        "--node-monitor-grace-period=12s",
        # The rates of the benchmark's comparison; the defaults would measure the controller manager.
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
        "--concurrent-job-syncs=20",
    ]


def write_configs() -> None:
    CONFIG.mkdir(parents=True, exist_ok=True)
    VOLUMES.mkdir(parents=True, exist_ok=True)
    (CONFIG / "audit-policy.json").write_text(json.dumps(audit_policy()))
    (CONFIG / "kube-proxy.json").write_text(json.dumps(proxy_config(CONTROL.name)))


def audit_policy() -> dict[str, object]:
    """Who asked for what, without bodies; one line a request, written when it is answered."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    }


def proxy_config(hostname: str) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{PKI}/kube-proxy.conf"},
        "mode": "iptables",
        "iptables": {"minSyncPeriod": "0s"},
        "clusterCIDR": listed(PODS),
        "hostnameOverride": hostname,
        "conntrack": {"maxPerCore": 0},  # the limit is the host's
    }
