"""The running operator: watches, queue, resync, health and metrics, put together."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from aiohttp import web
from kubernetes.aio.client import ApiClient
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from deepseek_operator import handlers, metrics
from deepseek_operator.api import METADATA_LIST, Api, path
from deepseek_operator.cluster import KubernetesCluster
from deepseek_operator.health import Health
from deepseek_operator.leader import ApiLease, Candidate
from deepseek_operator.observed import JobKey, Sighting
from deepseek_operator.reconcile import reconcile
from deepseek_operator.settings import Settings
from deepseek_operator.spec import API_VERSION, KIND
from deepseek_operator.supervisor import Operate, supervise
from deepseek_operator.workqueue import WorkQueue

log = logging.getLogger(__name__)

TICK_S: Final = 60.0  # between two lists that look for missed events
LEASE_NAME: Final = "deepseek-operator"


@dataclass(frozen=True, slots=True)
class Options:
    namespaces: tuple[str, ...]  # empty: all
    leader_elect: bool
    identity: str
    port: int  # of /metrics and /healthz
    settings: Settings


async def serve(options: Options, client: ApiClient, stop: asyncio.Event) -> None:
    """Run until `stop` is set or the lease is lost."""
    api = Api(client)
    async with aiohttp.ClientSession(trust_env=False) as session:
        cluster = KubernetesCluster(api, session, options.settings)
        queue = WorkQueue(lambda key: reconcile(key, cluster, options.settings, datetime.now(UTC)))
        health = Health(time.monotonic, queue.oldest_s, TICK_S)
        metrics.QUEUE_DEPTH.set_function(lambda: len(queue))
        metrics.QUEUE_OLDEST.set_function(queue.oldest_s)
        async with _probes(health, options.port), _leading(options, api, stop):
            ticker = asyncio.create_task(_tick(api, options.namespaces, queue, health))
            try:
                if not stop.is_set():
                    await supervise(_watches(options, cluster, queue, health), stop)
            finally:
                ticker.cancel()
                await queue.close()


def _watches(options: Options, cluster: KubernetesCluster, queue: WorkQueue, health: Health) -> Operate:
    """kopf's operator.  It runs in a loop of its own and tells this one what it sees."""
    loop = asyncio.get_running_loop()

    def wake(sighting: Sighting) -> None:
        cluster.saw(sighting)
        if sighting.is_job:
            health.told(sighting.key, sighting.version)
        if not cluster.is_echo(sighting):
            queue.add(sighting.key)

    def woken(sighting: Sighting) -> None:
        loop.call_soon_threadsafe(wake, sighting)

    registry = handlers.registry(woken)

    async def operate(stop: asyncio.Event) -> None:
        await handlers.watch(registry, handlers.settings(), options.namespaces, stop)

    return operate


async def _tick(api: Api, namespaces: tuple[str, ...], queue: WorkQueue, health: Health) -> None:
    """Look every minute for changes that no watch event told of."""
    while True:
        await asyncio.sleep(TICK_S)
        health.ticked()
        try:
            missed = health.listed(await job_versions(api, namespaces))
        except Exception as error:
            log.warning("training jobs could not be listed: %s: %s", type(error).__name__, error)
            continue
        metrics.MISSED_EVENTS.inc(len(missed))
        for key in missed:
            queue.add(key)


async def job_versions(api: Api, namespaces: tuple[str, ...]) -> dict[JobKey, str]:
    """resourceVersion of every training job in `namespaces` (none: in all)."""
    lists = [await api.request("GET", path(API_VERSION, KIND, ns), accept=METADATA_LIST) for ns in namespaces or ("",)]
    metas = (item["metadata"] for found in lists for item in found["items"])
    return {JobKey(meta["namespace"], meta["name"]): meta["resourceVersion"] for meta in metas}


@asynccontextmanager
async def _leading(options: Options, api: Api, stop: asyncio.Event) -> AsyncIterator[None]:
    """Wait for the lease, give up when it is lost, hand it over at the end."""
    if not options.leader_elect:
        yield
        return
    candidate = Candidate(ApiLease(api, options.settings.operator_namespace, LEASE_NAME), options.identity)
    await _first(candidate.acquire(), stop.wait())
    holding = asyncio.create_task(candidate.hold())
    holding.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        lost = holding.done()
        holding.cancel()
        if not lost:
            await candidate.release()


async def _first(*waits: Coroutine[Any, Any, Any]) -> None:
    """Return when the first of `waits` does; cancel the others."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


@asynccontextmanager
async def _probes(health: Health, port: int) -> AsyncIterator[None]:
    """/metrics for Prometheus, /healthz for the kubelet."""

    async def healthz(_: web.Request) -> web.Response:
        problems = health.problems()
        return web.Response(text="\n".join(problems) or "ok", status=503 if problems else 200)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    try:
        yield
    finally:
        await runner.cleanup()
