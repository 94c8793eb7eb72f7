"""kopf's watches against a server that speaks Kubernetes: what wakes the queue, and what survives."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import kmock
import pytest
import yaml
from kubernetes.aio.client import ApiClient, Configuration

from deepseek_operator.api.names import API_VERSION, PLURAL
from deepseek_operator.controller import owner_watch
from deepseek_operator.controller.service import Options, serve
from deepseek_operator.controller.supervisor import supervise
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.objects.observed import OwnerKey, Sighting
from deepseek_operator.settings import Settings
from support.builders.operator import a_training_job

RESOURCE = kmock.resource(f"{API_VERSION}/deepseektrainingjobs")
VERBS = {"get", "list", "watch", "patch", "create", "update", "delete"}
KEY = OwnerKey("ml", "demo")
JOB = a_training_job(resourceVersion="7")


@pytest.fixture
def cluster(kmock: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Kubernetes with the resources that kopf looks for, and a kubeconfig that leads to it."""
    for resource, kind, namespaced in (
        (f"{API_VERSION}/deepseektrainingjobs", "DeepSeekTrainingJob", True),
        ("batch/v1/jobs", "Job", True),
        ("v1/pods", "Pod", True),
        ("v1/events", "Event", True),
        ("v1/resourcequotas", "ResourceQuota", True),
        ("v1/namespaces", "Namespace", False),
    ):
        kmock.resources[resource] = {"kind": kind, "namespaced": namespaced, "verbs": VERBS, "subresources": {"status"}}
    config = {
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": str(kmock.url).rstrip("/")}}],
        "users": [{"name": "test", "user": {"token": "secret"}}],
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return kmock


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread brings about; the test's own timeout ends it."""
    while not condition():
        await asyncio.sleep(0.01)


class Woken(list[Sighting]):
    def __call__(self, sighting: Sighting) -> None:
        self.append(sighting)


@pytest.fixture
async def watching() -> AsyncIterator[Callable[..., Woken]]:
    """Start the operator's watches under their supervisor, with pauses that suit a test."""
    stop, tasks = asyncio.Event(), []

    def start() -> Woken:
        woken = Woken()
        registry, settings = owner_watch.registry(PLURAL, woken), owner_watch.settings()
        settings.networking.error_backoffs = Quick()
        settings.watching.reconnect_backoff = 0.01

        async def operate(inner: asyncio.Event) -> None:
            await owner_watch.watch(registry, settings, (), inner)

        tasks.append(asyncio.create_task(supervise(operate, stop, pause_s=0.01)))
        return woken

    yield start
    stop.set()
    await asyncio.gather(*tasks)


class Quick(owner_watch.Endless):
    def __iter__(self) -> Any:
        return iter(lambda: 0.02, None)


async def test_jobs_wake_the_queue_and_kopf_writes_nothing(cluster: Any, watching: Callable[[], Woken]) -> None:
    cluster.objects[RESOURCE, "ml", "demo"] = JOB
    woken = watching()
    await until(lambda: bool(woken))
    assert (woken[0].key, woken[0].version, woken[0].is_owner) == (KEY, "7", True)
    assert [request.method for request in cluster if request.method not in {None, kmock.method.GET}] == []


@pytest.mark.parametrize(
    ("type_", "extra"),
    [(None, {"owner": JOB}), ("ADDED", {"owner": JOB, "is_new": True}), ("MODIFIED", {"owner": JOB}), ("DELETED", {})],
)
def test_a_job_comes_along_unless_it_was_deleted(type_: Any, extra: Any) -> None:
    event: Any = {"type": type_, "object": JOB}
    assert owner_watch.sighting(KEY, event) == Sighting(KEY, "7", is_owner=True, **extra)


async def test_watches_need_no_name_for_the_user_that_they_run_as(
    cluster: Any, watching: Callable[[], Woken], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 987654)  # in no /etc/passwd, as in an image or under OpenShift
    cluster.objects[RESOURCE, "ml", "demo"] = a_training_job()
    woken = watching()
    await until(lambda: bool(woken))


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, 504])
async def test_watches_survive_a_list_that_fails_for_a_while(
    cluster: Any, watching: Callable[[], Woken], status: int
) -> None:
    failing = cluster[kmock.action.LIST, RESOURCE][:3] << status
    woken = watching()
    await until(lambda: len(failing) >= 3)
    cluster.objects[RESOURCE, "ml", "demo"] = a_training_job()
    await until(lambda: KEY in {sighting.key for sighting in woken})


@pytest.mark.parametrize("status", [401, 403, 404, 410, 429, 500, 504])
async def test_watches_survive_a_stream_that_is_refused_for_a_while(
    cluster: Any, watching: Callable[[], Woken], status: int
) -> None:
    refused = cluster[kmock.action.WATCH, RESOURCE][:3] << status
    woken = watching()
    await until(lambda: len(refused) >= 3)
    cluster.objects[RESOURCE, "ml", "demo"] = a_training_job()
    await until(lambda: KEY in {sighting.key for sighting in woken})


@pytest.mark.parametrize("code", [410, 500, 504])
async def test_watches_survive_an_error_in_the_stream(cluster: Any, watching: Callable[[], Woken], code: int) -> None:
    error = {"type": "ERROR", "object": {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code}}
    failing = cluster[kmock.action.WATCH, RESOURCE][:1] << (error,)
    woken = watching()
    await until(lambda: len(failing) >= 1)
    cluster.objects[RESOURCE, "ml", "demo"] = a_training_job()
    await until(lambda: bool(woken))


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_the_operator_as_a_whole_reports_serves_its_metrics_and_stops(cluster: Any) -> None:
    cluster.objects[RESOURCE, "ml", "demo"] = a_training_job({"suspend": True})
    options = Options((), leader_elect=False, identity="a", port=free_port(), settings=Settings())
    stop = asyncio.Event()
    async with ApiClient(Configuration(host=str(cluster.url).rstrip("/"))) as client:
        service = asyncio.create_task(serve(JOBS, replace(options, namespaces=("ml",)), client, stop))
        await until(lambda: cluster.objects[RESOURCE, "ml", "demo"].get("status", {}).get("phase") == "Suspended")
        async with aiohttp.ClientSession(f"http://127.0.0.1:{options.port}") as session:
            async with session.get("/healthz") as answer:
                assert (answer.status, await answer.text()) == (200, "ok")
            async with session.get("/metrics") as answer:
                assert 'dstj_jobs{phase="Suspended"}' in await answer.text()
        stop.set()
        await service
