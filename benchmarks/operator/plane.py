"""A Kubernetes control plane without nodes, on loopback: etcd, kube-apiserver, kube-controller-manager.

State is in memory (/dev/shm) where there is room, so that no disk is measured; the programs and the certificates are
those of tests/e2e/cluster, the running cluster there is not touched.
"""

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dstj.local.machine import free_ports

CLUSTER = Path(__file__).resolve().parents[2] / "tests" / "e2e" / "cluster"
MEMORY = Path("/dev/shm")
ETCD_PORT = 2379  # that program of tests/e2e/cluster knows no other
PATIENCE_S = 60.0
OPERATOR = "system:serviceaccount:deepseek-system:deepseek-operator"  # its user name
PREPARE = """
import build, pki
pki.make_certificates()
pki.sign("load", "/O=system:masters/CN=load")
print(build.programs())
"""
# The API server encodes all that it logs: of pods and their controllers, that would be part of what is measured.
AUDIT_POLICY = {"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"]}


@dataclass(frozen=True)
class Plane:
    """A running control plane; each user's kubeconfig is `<user>.conf` in `pki`."""

    directory: Path
    programs: Path
    port: int
    processes: dict[str, int]  # component: process id

    @property
    def server(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def pki(self) -> Path:
        return self.directory / "pki"

    @property
    def audit_log(self) -> Path:
        return self.directory / "audit.log"

    @property
    def kubectl(self) -> Path:
        return self.programs / "kubectl"

    def kubeconfig(self, user: str) -> Path:
        return self.pki / f"{user}.conf"

    def tls(self, user: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.pki / "ca.crt"))
        context.load_cert_chain(self.pki / f"{user}.crt", self.pki / f"{user}.key")
        return context


@contextmanager
def control_plane(users: Sequence[str] = (OPERATOR,), *, raised: bool = True) -> Iterator[Plane]:
    """Start it empty; end its processes and remove its state afterwards.

    `users`: whose requests are in the audit log.
    `raised`: the controllers may ask more often than by default, 500 times a second instead of 20.
    """
    directory = Path(tempfile.mkdtemp(prefix="dstj-bench-", dir=MEMORY if MEMORY.is_dir() else None))
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        programs, port = _prepare(directory, users), free_ports(1)[0]
        _point_kubeconfigs(directory / "pki", f"https://127.0.0.1:{port}")
        for name, flags, listens in (
            ("etcd", [f"--data-dir={directory}/etcd"], ETCD_PORT),
            ("kube-apiserver", _api_server_flags(directory, port), port),
            ("kube-controller-manager", _controller_manager_flags(directory / "pki", raised=raised), port),
        ):
            with (directory / f"{name}.log").open("wb") as log:
                running[name] = subprocess.Popen([programs / name, *flags], stdout=log, stderr=log)
            _wait_for(listens, running[name])
        plane = Plane(directory, programs, port, {name: process.pid for name, process in running.items()})
        _wait_until_ready(plane)
        yield plane
    finally:
        for process in reversed(running.values()):
            process.kill()
            process.wait()
        shutil.rmtree(directory)


def _prepare(directory: Path, users: Sequence[str]) -> Path:
    """Certificates and the audit policy; returns the directory of the programs.

    The former in a process of its own, because the modules of tests/e2e/cluster learn from the environment where their
    state is.
    """
    if not _is_free(ETCD_PORT):
        raise SystemExit(f"port {ETCD_PORT} of 127.0.0.1 is in use: another benchmark runs, or an etcd; end it first")
    rules = [{"level": "Metadata", "users": list(users)}, {"level": "None"}]
    (directory / "audit-policy.json").write_text(json.dumps(AUDIT_POLICY | {"rules": rules}))
    command = [sys.executable, "-c", PREPARE]
    environment = os.environ | {"DSTJ_CLUSTER_STATE": str(directory), "PYTHONPATH": str(CLUSTER)}
    return Path(subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def _point_kubeconfigs(pki: Path, server: str) -> None:
    for path in pki.glob("*.conf"):
        config = json.loads(path.read_text())
        config["clusters"][0]["cluster"]["server"] = server
        path.write_text(json.dumps(config))


def _api_server_flags(directory: Path, port: int) -> Sequence[str]:
    pki = directory / "pki"
    return (
        f"--etcd-servers=http://127.0.0.1:{ETCD_PORT}",
        f"--secure-port={port}",
        "--bind-address=127.0.0.1",
        f"--cert-dir={directory}",
        f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt",
        f"--tls-private-key-file={pki}/apiserver.key",
        f"--service-account-key-file={pki}/service-accounts.pub",
        f"--service-account-signing-key-file={pki}/service-accounts.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-cluster-ip-range=10.96.0.0/16",
        "--endpoint-reconciler-type=none",
        "--authorization-mode=RBAC",
        f"--audit-policy-file={directory}/audit-policy.json",
        f"--audit-log-path={directory}/audit.log",
    )


def _controller_manager_flags(pki: Path, *, raised: bool) -> Sequence[str]:
    limits = ("--kube-api-qps=500", "--kube-api-burst=1000", "--concurrent-job-syncs=20")
    return (
        *(limits if raised else ()),
        f"--kubeconfig={pki}/kube-controller-manager.conf",
        f"--service-account-private-key-file={pki}/service-accounts.key",
        f"--root-ca-file={pki}/ca.crt",
        "--secure-port=0",
        "--leader-elect=false",
        "--use-service-account-credentials",
        # There are no nodes; pods that are told to run on one must not be collected for that.
        "--controllers=*,-node-lifecycle-controller,-pod-garbage-collector-controller,-taint-eviction-controller",
    )


def _is_free(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) != 0


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + PATIENCE_S
    while _is_free(port):
        if process.poll() is not None or time.monotonic() > end:
            raise TimeoutError(f"nobody listens on port {port}: {process.args}")
        time.sleep(0.05)


def _wait_until_ready(plane: Plane) -> None:
    """Until a namespace has its service account: then the API server and the controllers are at work."""
    end = time.monotonic() + PATIENCE_S
    while not _is_ready(plane):
        if time.monotonic() > end:
            raise TimeoutError(f"the control plane is not ready after {PATIENCE_S:.0f} s")
        time.sleep(0.1)


def _is_ready(plane: Plane) -> bool:
    connection = http.client.HTTPSConnection("127.0.0.1", plane.port, timeout=5, context=plane.tls("load"))
    try:
        connection.request("GET", "/api/v1/namespaces/default/serviceaccounts/default")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
