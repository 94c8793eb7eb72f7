"""The API server as this directory needs it: JSON in, JSON out, as the cluster's admin."""

import http.client
import json
import ssl
from typing import Any

from layout import CONTROL
from pki import PKI


def request(method: str, path: str, body: object = None, kind: str = "application/json") -> tuple[int, Any]:
    """Status and decoded answer; status 0 while nobody answers.  A text answer stays text."""
    connection = http.client.HTTPSConnection(CONTROL.ip, 6443, timeout=10, context=tls())
    try:
        connection.request(method, path, json.dumps(body) if body is not None else None, {"Content-Type": kind})
        response = connection.getresponse()
        text = response.read().decode()
    except OSError:
        return 0, None
    finally:
        connection.close()
    return response.status, json.loads(text) if text.startswith("{") else text


def get(path: str) -> Any:
    """The object or list at a path, None where there is none or nobody answers."""
    status, answer = request("GET", path)
    return answer if status == 200 else None


def tls() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(PKI / "ca.crt"))
    context.load_cert_chain(PKI / "admin.crt", PKI / "admin.key")
    return context


def ready_since(node: dict[str, Any]) -> str | None:
    """Time of the last sign of life of a node that is ready."""
    for condition in node["status"].get("conditions", []):
        if condition["type"] == "Ready" and condition["status"] == "True":
            return str(condition["lastHeartbeatTime"])
    return None
