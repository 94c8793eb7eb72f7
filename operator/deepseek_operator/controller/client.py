"""Requests to the API server in plain dicts, with the settings of the official client.

The models, discovery and serialisation of the official client cost more than all the rest of a pass.  They have nothing
to say that this operator does not know, because it writes seven fixed kinds.
"""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from kubernetes.aio.client import ApiClient

from deepseek_operator.api.names import API_VERSION, KIND, OPERATOR, PLURAL, PROFILE_KIND, PROFILE_PLURAL
from deepseek_operator.concurrency import within
from deepseek_operator.controller import metrics
from deepseek_operator.controller.words import in_plain_words
from deepseek_operator.objects.observed import Manifest
from deepseek_trainer.contract.documents import json_text

APPLY: Final = "application/apply-patch+yaml"
METADATA: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
JSON: Final = "application/json"
_WRITE: Final = {"fieldManager": OPERATOR, "fieldValidation": "Ignore"}
DEADLINE_S: Final = 10.0  # a pass that hangs would hold up its object; after the deadline the queue tries again
LARGEST_LINE: Final = 2**21  # [bytes]
PAGE: Final = "250"  # [objects]
SILENCE_S: Final = 150.0  # an API server sends a bookmark about every 60 s: two may be late, or one may be lost
WATCH_S: Final = "300"

PLURALS: Final[Mapping[tuple[str, str], str]] = {
    (API_VERSION, KIND): PLURAL,
    (API_VERSION, PROFILE_KIND): PROFILE_PLURAL,
    ("batch/v1", "Job"): "jobs",
    ("coordination.k8s.io/v1", "Lease"): "leases",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
    ("v1", "Event"): "events",
    ("v1", "PersistentVolumeClaim"): "persistentvolumeclaims",
    ("v1", "Pod"): "pods",
    ("v1", "ResourceQuota"): "resourcequotas",
    ("v1", "LimitRange"): "limitranges",
    ("scheduling.k8s.io/v1", "PriorityClass"): "priorityclasses",
    ("v1", "Service"): "services",
    ("v1", "ServiceAccount"): "serviceaccounts",
}


class Page(NamedTuple):
    """A part of a list, and the version of the whole, from which a watch can go on."""

    version: str
    items: tuple[Manifest, ...]


class AnswerError(Exception):
    """The API server did not do what it was asked for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status, self.message = status, message


class ApiError(AnswerError):
    """The API server answered with an error."""


class NamespaceLeavingError(AnswerError):
    """The namespace is being deleted, with everything in it, and takes nothing new; or it is gone."""


def path(api_version: str, kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """The path of an object, or of a list if no name is given."""
    root = "/api" if "/" not in api_version else "/apis"
    scope = ("namespaces", namespace) if namespace else ()
    parts = (root, api_version, *scope, PLURALS[api_version, kind], name, subresource)
    return "/".join(part for part in parts if part)


class Api:
    """Requests, each with a deadline.  They raise ApiError, TimeoutError, or the errors of the transport."""

    def __init__(self, client: ApiClient, *, deadline_s: float = DEADLINE_S) -> None:
        self._client, self._deadline_s = client, deadline_s

    async def get(self, path: str, *, accept: str = JSON) -> Manifest | None:
        """An object or a list, or None if there is none."""
        try:
            return await self.request("GET", path, accept=accept)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def items(self, api_version: str, kind: str, namespace: str, **query: str) -> tuple[Manifest, ...]:
        """The objects of a list.  Each gets the apiVersion and kind that lists leave out."""
        found = await self.request("GET", path(api_version, kind, namespace), query)
        return _items(api_version, kind, found)

    async def pages(
        self, api_version: str, kind: str, namespace: str, *, accept: str = JSON, **query: str
    ) -> AsyncIterator[Page]:
        """As `items`, one part at a time, so that the whole list is never in memory."""
        more = {"limit": PAGE}
        while more:
            found = await self.request("GET", path(api_version, kind, namespace), query | more, accept=accept)
            yield Page(found["metadata"].get("resourceVersion", ""), _items(api_version, kind, found))
            token = found["metadata"].get("continue")
            more = {"limit": PAGE, "continue": token} if token else {}

    async def watch(self, path: str, version: str, *, accept: str = JSON, **query: str) -> AsyncIterator[Manifest]:
        """The events after `version`, until the API server ends the stream.  An event of type ERROR raises ApiError."""
        query |= {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": WATCH_S}
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_S)
        async with self._asked("GET", path, params=query, headers={"Accept": accept}, timeout=timeout) as answer:
            if answer.status != 200:
                raise ApiError(answer.status, error_text(await answer.read()))
            async for line in answer.content:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise ApiError(event["object"].get("code", 500), str(event["object"].get("message")))
                yield event

    async def apply(self, manifest: Manifest, subresource: str = "") -> bytes:
        """Create or update by server-side apply, and take over fields that somebody else changed.

        With uid and resourceVersion in its metadata, only this object in this state is changed, and none is created.
        Returns the metadata of the object as JSON.  Nobody here needs the rest, which would cost the API server time.
        """
        meta = manifest["metadata"]
        where = path(manifest["apiVersion"], manifest["kind"], meta.get("namespace", ""), meta["name"], subresource)
        query = _WRITE | {"force": "true"}
        return await self._send("PATCH", where, query, manifest, content_type=APPLY, accept=METADATA)

    async def create(self, manifest: Manifest) -> None:
        """Create an object, which costs the API server a fifth less than an apply.  409: the name is taken."""
        where = path(manifest["apiVersion"], manifest["kind"], manifest["metadata"]["namespace"])
        await self._send("POST", where, _WRITE, manifest, content_type=JSON, accept=METADATA)

    async def request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
        *,
        content_type: str = JSON,
        accept: str = JSON,
    ) -> Manifest:
        """The parsed answer.  Every answer but success raises ApiError."""
        return _parsed(await self._send(method, path, query, body, content_type=content_type, accept=accept))

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        body: Manifest | None,
        *,
        content_type: str,
        accept: str,
    ) -> bytes:
        headers = {"Accept": accept, "Content-Type": content_type}
        data = None if body is None else json_text(body)
        asking = self._answer(method, path, params=query, data=data, headers=headers)
        status, content = await within(self._deadline_s, asking)
        metrics.API_REQUESTS.labels(method, str(status)).inc()
        if not 200 <= status < 300:
            raise _error(status, content)
        return content

    async def _answer(self, method: str, path: str, **options: Any) -> tuple[int, bytes]:
        async with self._asked(method, path, **options) as answer:
            return answer.status, await answer.read()

    @asynccontextmanager
    async def _asked(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, **options: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer to a request, with its content not read yet."""
        configuration = self._client.configuration
        async with self._session().request(
            method,
            configuration.host + path,
            headers={**(headers or {}), **await self._authorization()},
            server_hostname=configuration.tls_server_name,
            **options,
        ) as answer:
            yield answer

    async def _authorization(self) -> dict[str, str]:
        """The token, which the official client reads again when it is old.  Without it, a certificate identifies us."""
        settings = await self._client.configuration.auth_settings()
        return {"Authorization": settings["BearerToken"]["value"]} if "BearerToken" in settings else {}

    def _session(self) -> aiohttp.ClientSession:
        """The session of the official client, which closes it.

        It is made here, because the client's own session would read the environment and ~/.netrc for each request.
        """
        rest, configuration = self._client.rest_client, self._client.configuration
        session: aiohttp.ClientSession | None = rest.pool_manager
        if session is None:
            session = rest.pool_manager = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=rest.maxsize, ssl=rest.ssl_context),
                timeout=aiohttp.ClientTimeout(total=None),
                proxy=configuration.proxy or _proxy(configuration.host),
                read_bufsize=LARGEST_LINE,
            )
        return session


def _items(api_version: str, kind: str, found: Manifest) -> tuple[Manifest, ...]:
    """The objects of a list.  An empty list of metadata is null in the answer."""
    return tuple({"apiVersion": api_version, "kind": kind, **item} for item in found["items"] or ())


def _proxy(url: str) -> str | None:
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)


def _error(status: int, content: bytes) -> Exception:
    """The error of an answer.  A namespace that is gone has no code of its own, only these words."""
    message = error_text(content)
    causes = (_parsed(content).get("details") or {}).get("causes") or ()
    is_leaving = any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
    is_gone = status == 404 and message.startswith('namespaces "')
    return (NamespaceLeavingError if is_leaving or is_gone else ApiError)(status, message)


def error_text(content: bytes) -> str:
    """The message of a refusal: that of a metav1.Status, or the beginning of a proxy's page."""
    return in_plain_words(_parsed(content)) or content[:256].decode(errors="replace")


def _parsed(content: bytes) -> Manifest:
    try:
        parsed = json.loads(content)
    except ValueError:
        return {}  # the error page of a proxy on the way
    return parsed if isinstance(parsed, dict) else {}
