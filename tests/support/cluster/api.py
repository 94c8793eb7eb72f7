"""The API server without kubectl, which takes 0.2 s a call and checks what it sends."""

import http.client
import json
import ssl
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml

from deepseek_operator.api.names import API_VERSION

IDLE_S = 20.0
Manifest = dict[str, Any]
# Where the API server has the resources that tests read.
CORE = ("events", "persistentvolumeclaims", "pods", "resourcequotas", "serviceaccounts", "services")
GROUPS = {
    **dict.fromkeys(CORE, "/api/v1"),
    "deepseektrainingjobs": f"/apis/{API_VERSION}",
    "jobs": "/apis/batch/v1",
    "networkpolicies": "/apis/networking.k8s.io/v1",
}


def path_of(namespace: str, resource: str, name: str = "") -> str:
    """Of the resources of one kind in a namespace, or of one of them."""
    return "/".join(filter(None, (GROUPS[resource], "namespaces", namespace, resource, name)))


class Server:
    """One connection as the admin of a kubeconfig, or as whom the headers say."""

    def __init__(self, kubeconfig: Path, **headers: str) -> None:
        address = yaml.safe_load(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        pki = kubeconfig.parent
        tls = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")
        self._connection = http.client.HTTPSConnection(address.removeprefix("https://"), timeout=10, context=tls)
        self._headers, self._used = headers, 0.0

    def answer(self, method: str, path: str, body: str = "", kind: str = "application/json") -> tuple[int, str]:
        """Status and text.  Raises OSError where nobody answers; the next call connects anew."""
        if time.monotonic() - self._used > IDLE_S:
            self._connection.close()  # before the server does, and a write could not be told from one that was done
        self._used = time.monotonic()
        try:
            self._connection.request(method, path, body, {"Content-Type": kind, **self._headers})
            answer = self._connection.getresponse()
            return answer.status, answer.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise ConnectionError(f"{method} {path}: {error}") from error

    def read(self, path: str, **query: str) -> Manifest | None:
        """The object or list at a path, None where there is none."""
        try:
            status, text = self.answer("GET", f"{path}?{urlencode(query)}")
        except ConnectionError:  # it closes a connection that was long idle
            status, text = self.answer("GET", f"{path}?{urlencode(query)}")
        assert status in (200, 404), f"GET {path}: {status} {text}"
        return json.loads(text) if status == 200 else None

    def list(self, path: str, **query: str) -> list[Manifest]:
        """The items of a list, which tell their kind as single objects do."""
        found = self.read(path, **query)
        assert found is not None, f"nothing is served at {path}"
        kind = {"apiVersion": found["apiVersion"], "kind": found["kind"].removesuffix("List")}
        return [kind | item for item in found["items"]]


@cache
def admin(kubeconfig: Path) -> Server:
    """The connection that all reads of a session share."""
    return Server(kubeconfig)
