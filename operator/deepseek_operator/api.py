"""The API server, spoken to in plain dicts over the transport of the official client.

Models and discovery of the official client cost more than all the rest of a pass, and tell nothing
that this operator does not know: it writes eight fixed kinds.
"""

import asyncio
import json
from collections.abc import Mapping
from typing import Final

from kubernetes.aio.client import ApiClient

from deepseek_operator import metrics
from deepseek_operator.observed import Manifest
from deepseek_operator.spec import API_VERSION, KIND, PLURAL, PROFILE_KIND, PROFILE_PLURAL

FIELD_MANAGER: Final = "deepseek-operator"
APPLY: Final = "application/apply-patch+yaml"
DEADLINE_S: Final = 10.0  # a pass that hangs would hold its job; the queue tries again

PLURALS: Final[Mapping[tuple[str, str], str]] = {
    (API_VERSION, KIND): PLURAL,
    (API_VERSION, PROFILE_KIND): PROFILE_PLURAL,
    ("batch/v1", "Job"): "jobs",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
    ("v1", "ConfigMap"): "configmaps",
    ("v1", "Event"): "events",
    ("v1", "PersistentVolumeClaim"): "persistentvolumeclaims",
    ("v1", "Pod"): "pods",
    ("v1", "Service"): "services",
    ("v1", "ServiceAccount"): "serviceaccounts",
}


class ApiError(Exception):
    """The API server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


def path(api_version: str, kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Path of an object, or of a list where there is no name."""
    root = "/api" if "/" not in api_version else "/apis"
    scope = ("namespaces", namespace) if namespace else ()
    parts = (root, api_version, *scope, PLURALS[api_version, kind], name, subresource)
    return "/".join(part for part in parts if part)


class Api:
    """Requests with a deadline of their own.  Raises ApiError, TimeoutError, or the transport's errors."""

    def __init__(self, client: ApiClient, *, deadline_s: float = DEADLINE_S) -> None:
        self._client, self._deadline_s = client, deadline_s

    async def get(self, path: str, **query: str) -> Manifest | None:
        """An object or a list; None if there is none."""
        try:
            return await self.request("GET", path, query)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def items(self, api_version: str, kind: str, namespace: str, **query: str) -> tuple[Manifest, ...]:
        """The objects of a list, each with the apiVersion and kind that lists leave out."""
        found = await self.request("GET", path(api_version, kind, namespace), query)
        return tuple({"apiVersion": api_version, "kind": kind, **item} for item in found["items"])

    async def apply(self, manifest: Manifest, subresource: str = "") -> Manifest:
        """Create or update by server-side apply, and take over fields that somebody else changed."""
        meta = manifest["metadata"]
        where = path(manifest["apiVersion"], manifest["kind"], meta.get("namespace", ""), meta["name"], subresource)
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        return await self.request("PATCH", where, query, manifest, content_type=APPLY)

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        *,
        content_type: str = "application/json",
        accept: str = "application/json",
    ) -> Manifest:
        """Raises ApiError for every answer but success."""
        headers = {"Accept": accept, "Content-Type": content_type}
        async with asyncio.timeout(self._deadline_s):
            prepared = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            answer = await self._client.call_api(*prepared)
            content: bytes = await answer.read()
        metrics.API_REQUESTS.labels(method, str(answer.status)).inc()
        parsed = _parsed(content)
        if not 200 <= answer.status < 300:
            raise ApiError(answer.status, str(parsed.get("message") or content[:256].decode(errors="replace")))
        return parsed


def _parsed(content: bytes) -> Manifest:
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}  # an error page of a proxy on the way
    return parsed if isinstance(parsed, dict) else {}
