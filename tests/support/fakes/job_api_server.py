"""A small API server on a real socket: get, list by label, server-side apply, merge patch, logs.

kmock, which the operator's wiring is tested against, creates nothing by server-side apply.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from dstj.local.kubelet import Manifest

ROOT = "/apis/training.dstj.io/v1alpha1"
Request = tuple[str, str, dict[str, str]]  # method, path, query


class FakeCluster(ThreadingHTTPServer):
    """What it holds is in `objects` by path; `refusals` come before everything else."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, Manifest] = {}
        self.logs: dict[tuple[str, str], str] = {}  # by pod and container
        self.refusals: dict[tuple[str, str], tuple[int, str]] = {}
        self.requests: list[Request] = []
        self.after: list[Any] = []  # each called, once, after one more request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def writes(self) -> list[Request]:
        return [request for request in self.requests if request[0] != "GET"]


@contextmanager
def serving() -> Iterator[FakeCluster]:
    with FakeCluster() as cluster:
        thread = threading.Thread(target=cluster.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield cluster
        cluster.shutdown()
        thread.join()


def kubeconfig(directory: Path, server: str, **context: str) -> Path:
    content = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", **context}}],
        "clusters": [{"name": "test", "cluster": {"server": server}}],
        "users": [{"name": "test", "user": {"token": "secret"}}],
    }
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    return path


class _Handler(BaseHTTPRequestHandler):
    server: FakeCluster

    def do_GET(self) -> None:
        path, query = self._begin()
        if self._refused("GET", path):
            return
        if path.endswith("/log"):
            self._answer(200, self.server.logs[path.split("/")[-2], query["container"]].encode())
        elif path in self.server.objects:
            self._json(200, self.server.objects[path])
        elif path.count("/") in (5, 6) and not path.startswith(f"{ROOT}/trainingprofiles"):
            inside = [found for where, found in self.server.objects.items() if where.rpartition("/")[0] == path]
            self._json(200, {"items": [found for found in inside if _matches(found, query.get("labelSelector", ""))]})
        else:
            self._json(404, {"message": "not found"})

    def do_PATCH(self) -> None:
        path, query = self._begin()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused("PATCH", path):
            return
        before = self.server.objects.get(path)
        if before is None and self.headers["Content-Type"] != "application/apply-patch+yaml":
            self._json(404, {"message": f"{path} not found"})
            return
        after = _merged(before or {}, body)
        if query.get("dryRun") != "All":
            self.server.objects[path] = after
        self._json(200 if before else 201, after)

    def _begin(self) -> tuple[str, dict[str, str]]:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        self.server.requests.append((self.command, url.path, query))
        if self.headers["Authorization"] != "Bearer secret":
            raise AssertionError("a request without the kubeconfig's token")
        return url.path, query

    def _refused(self, method: str, path: str) -> bool:
        if refusal := self.server.refusals.get((method, path)):
            self._json(refusal[0], {"kind": "Status", "message": refusal[1]})
        return refusal is not None

    def _json(self, status: int, content: Manifest) -> None:
        self._answer(status, json.dumps(content).encode())

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        if self.server.after:
            self.server.after.pop(0)()

    def log_message(self, *_: Any) -> None:
        """Nobody reads an access log."""


def _matches(manifest: Mapping[str, Any], selector: str) -> bool:
    wanted = dict(term.split("=", 1) for term in selector.split(",") if term)
    return wanted.items() <= manifest["metadata"].get("labels", {}).items()


def _merged(base: Manifest, changes: Manifest) -> Manifest:
    nested = {key: _merged(base[key], value) for key, value in changes.items() if _both_dicts(base.get(key), value)}
    return base | changes | nested


def _both_dicts(first: Any, second: Any) -> bool:
    return isinstance(first, dict) and isinstance(second, dict)
