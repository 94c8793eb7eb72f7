"""A small API server on a real socket that keeps what it is given, and does not always answer as it should."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from aiohttp import web

from deepseek_operator.objects.observed import Manifest
from support.builders.operator import merged

FAULTS: Final = ("429", "500", "reset", "cut", "silence", "lost answer")


@dataclass
class FaultyApi:
    """Objects by path.  So many next requests as `left` says for a verb, such as "list pods", meet with `fault`."""

    fault: str = ""
    left: dict[str, int] = field(default_factory=dict)
    objects: dict[str, Manifest] = field(default_factory=dict)
    pages: dict[str, Manifest] = field(default_factory=dict)  # what pods serve, by path
    verbs: list[str] = field(default_factory=list)  # of all requests, in their order
    watch: Callable[[], None] = lambda: None  # called after each change of a worker job
    answered: asyncio.Event = field(default_factory=asyncio.Event)
    silent: asyncio.Event = field(default_factory=asyncio.Event)  # set when it has fallen silent
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        verb = verb_of(request)
        self.verbs.append(verb)
        try:
            if self.left.get(verb):
                self.left[verb] -= 1
                return await self._fail(request)
            return await self._do(request)
        finally:
            self.answered.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for what requests bring about; the test's own time-out ends it."""
        while not condition():
            await self.answered.wait()
            self.answered.clear()

    async def _fail(self, request: web.Request) -> web.StreamResponse:
        if self.fault.isdigit():
            return web.json_response({"kind": "Status", "message": "try later"}, status=int(self.fault))
        if self.fault == "silence":
            if not request.path.startswith("/progress"):  # a page has a deadline of its own
                self.silent.set()
            await self.closing.wait()
        if self.fault == "cut":
            response = web.StreamResponse(headers={"Content-Length": "1000"})
            await response.prepare(request)
            await response.write(b'{"items": [')
        if self.fault == "lost answer":
            await self._do(request)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _do(self, request: web.Request) -> web.StreamResponse:
        """As an API server without a fault."""
        action, resource = verb_of(request).split()
        status, content = self._read(action, request.path) or self._write(action, request.path, await request.text())
        if resource == "jobs" and action not in {"get", "list"}:
            self.watch()
        return web.json_response(content, status=status)

    def _read(self, action: str, path: str) -> tuple[int, Manifest] | None:
        found = {"get": self.objects, "page": self.pages}.get(action, {})
        if path in found:
            return 200, found[path]
        if action == "list":
            inside = (found for where, found in self.objects.items() if where.rpartition("/")[0] == path)
            return 200, {"items": list(inside)}
        return None

    def _write(self, action: str, path: str, text: str) -> tuple[int, Manifest]:
        body = json.loads(text or "{}")
        if action == "create":
            path = f"{path}/{body['metadata']['name']}"
        if action == "delete" and path in self.objects:
            return 200, self.objects.pop(path)
        if action == "create" and path in self.objects:
            return 409, {"message": f"{path} already exists"}
        if action in {"create", "apply"}:
            return 200, self._kept(path.removesuffix("/status"), body)
        return 404, {"message": f"{path} not found"}

    def _kept(self, path: str, changes: Manifest) -> Manifest:
        new = {"uid": f"uid-of-{path}", "generation": 1, "creationTimestamp": "2026-01-02T03:00:00Z"}
        known = self.objects.get(path, {"metadata": new})
        version = {"metadata": {"resourceVersion": str(len(self.verbs))}}
        self.objects[path] = merged(merged(known, changes), version)
        return self.objects[path]


def verb_of(request: web.Request) -> str:
    """What is asked for, in the words of RBAC where it has them."""
    parts = request.path.strip("/").split("/")
    if parts[0] not in {"api", "apis"}:
        return f"page {request.path}"
    scoped = parts[2 if parts[0] == "api" else 3 :]
    resource, *name = scoped[2:] if scoped[0] == "namespaces" else scoped
    reads = "get" if name else "list"
    action = {"GET": reads, "POST": "create", "PATCH": "apply", "DELETE": "delete"}[request.method]
    return " ".join((action, "/".join([resource, *name[1:]])))
