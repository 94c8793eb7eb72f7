"""Certificates of the cluster, and a kubeconfig for each who talks to the API server."""

import base64
import json
from pathlib import Path

from layout import API_SERVER, CONTROL, KUBERNETES_SERVICE, NODES, STATE
from shell import run

PKI = STATE / "pki"
COMPLETE = PKI / "complete"
DAYS = "3650"
SERVICE = ("kubernetes", "default", "svc", "cluster", "local")
NAMES = ",".join(f"DNS:{'.'.join(SERVICE[:length])}" for length in (1, 2, 3, 5))


CLIENTS = ("kube-controller-manager", "kube-scheduler", "kube-proxy", "kube-router")


def make_certificates() -> None:
    """Once for a state directory, and later for clients that are new; an interrupted run starts over."""
    complete = COMPLETE.exists()
    if not complete:
        make_authority()
    for client in CLIENTS:
        if not complete or not (PKI / f"{client}.conf").exists():
            sign(client, f"/CN=system:{client}")
    COMPLETE.touch()


def make_authority() -> None:
    """Whom the cluster trusts, the certificates of its servers, and its admin's."""
    PKI.mkdir(parents=True, exist_ok=True, mode=0o700)
    new_key("ca")
    openssl(
        "req",
        "-x509",
        "-new",
        "-key",
        PKI / "ca.key",
        "-out",
        PKI / "ca.crt",
        "-days",
        DAYS,
        "-subj",
        "/CN=dstj-cluster",
    )
    sign(
        "apiserver", "/CN=kube-apiserver", f"{NAMES},DNS:localhost,IP:{CONTROL.ip},IP:{KUBERNETES_SERVICE},IP:127.0.0.1"
    )
    for node in NODES:
        sign(node.name, f"/O=system:nodes/CN=system:node:{node.name}", f"DNS:{node.name},IP:{node.ip}")
    sign("admin", "/O=system:masters/CN=admin")
    new_key("service-accounts")
    openssl("pkey", "-in", PKI / "service-accounts.key", "-pubout", "-out", PKI / "service-accounts.pub")


def sign(name: str, subject: str, also: str = "DNS:localhost") -> None:
    key, request, extensions = new_key(name), PKI / f"{name}.csr", PKI / f"{name}.ext"
    extensions.write_text(f"subjectAltName={also}\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl("req", "-new", "-key", key, "-out", request, "-subj", subject)
    authority: list[str | Path] = ["-CA", PKI / "ca.crt", "-CAkey", PKI / "ca.key", "-CAcreateserial", "-days", DAYS]
    openssl("x509", "-req", "-in", request, *authority, "-out", PKI / f"{name}.crt", "-extfile", extensions)
    kubeconfig = PKI / f"{name}.conf"
    kubeconfig.write_text(json.dumps(kubeconfig_of(name), indent=1))
    kubeconfig.chmod(0o600)


def new_key(name: str) -> Path:
    path = PKI / f"{name}.key"
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", path)
    return path


def openssl(*arguments: str | Path) -> None:
    run("openssl", *arguments)


def kubeconfig_of(name: str) -> dict[str, object]:
    def inline(file: str) -> str:
        return base64.b64encode((PKI / file).read_bytes()).decode()

    user = {"client-certificate-data": inline(f"{name}.crt"), "client-key-data": inline(f"{name}.key")}
    cluster = {"server": API_SERVER, "certificate-authority-data": inline("ca.crt")}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "dstj",
        "contexts": [{"name": "dstj", "context": {"cluster": "dstj", "user": name}}],
        "clusters": [{"name": "dstj", "cluster": cluster}],
        "users": [{"name": name, "user": user}],
    }
