"""The running operator: watches, queue, resync, health and metrics, put together."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from aiohttp import web
from kubernetes.aio.client import ApiClient
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from deepseek_operator.controller import job_watch, metrics
from deepseek_operator.controller.child_watch import CHILDREN, ChildWatch
from deepseek_operator.controller.client import METADATA_LIST, Api
from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.controller.health import Health
from deepseek_operator.controller.leader import ApiLease, Candidate
from deepseek_operator.controller.snapshot import ChangeNeededError, Remembered, Snapshot
from deepseek_operator.controller.supervisor import Operate, supervise
from deepseek_operator.controller.workqueue import WorkQueue
from deepseek_operator.jobs.reconcile import reconcile
from deepseek_operator.jobs.spec import API_VERSION, KIND
from deepseek_operator.objects.observed import JobKey, Sighting
from deepseek_operator.settings import Settings

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
        operator = Operator(options, api, KubernetesCluster(api, session, options.settings))
        async with _probes(operator.health, options.port), _leading(options, api, stop):
            if not stop.is_set():
                await operator.run(stop)


class Operator:
    """Watches wake the queue, whose passes go over the cluster."""

    def __init__(self, options: Options, api: Api, cluster: KubernetesCluster) -> None:
        self._options, self._api, self._cluster = options, api, cluster
        self._snapshot = Snapshot()
        self._queue = WorkQueue(self._pass)
        self.health = Health(time.monotonic, self._queue.oldest_s, TICK_S)
        metrics.QUEUE_DEPTH.set_function(lambda: len(self._queue))
        metrics.QUEUE_OLDEST.set_function(self._queue.oldest_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set.  The watches of children begin before the snapshot: no change in between is lost."""
        namespaces = self._options.namespaces
        watches = [
            ChildWatch(self._api, child, namespace, self._wake, self._missed)
            for child in CHILDREN
            for namespace in namespaces or ("",)
        ]
        await asyncio.gather(*(watch.begin() for watch in watches))
        await self._snapshot.take(self._api, namespaces)
        tasks = [asyncio.create_task(work) for work in (self._tick(), *(watch.run() for watch in watches))]
        try:
            await supervise(self._watch_jobs(), stop)
        finally:
            for task in tasks:
                task.cancel()
            await self._queue.close()

    def _watch_jobs(self) -> Operate:
        """kopf's operator.  It runs in a loop of its own and tells this one what it sees.

        Its context variables stay there: they hold the whole object, and the queue's tasks would keep them.
        """
        loop, own = asyncio.get_running_loop(), copy_context()

        def woken(sighting: Sighting) -> None:
            loop.call_soon_threadsafe(self._wake, sighting, context=own)

        registry = job_watch.registry(woken)

        async def operate(stop: asyncio.Event) -> None:
            await job_watch.watch(registry, job_watch.settings(), self._options.namespaces, stop)

        return operate

    def _wake(self, sighting: Sighting) -> None:
        self._snapshot.saw(sighting)
        self._cluster.saw(sighting)
        if sighting.is_job:
            self.health.told(sighting.key, sighting.version)
        if not self._cluster.is_echo(sighting):
            self._queue.add(sighting.key)

    def _missed(self) -> None:
        """Nobody knows what happened to worker jobs and pods for a while."""
        self._snapshot.forget()
        self._queue.add_all()

    async def _pass(self, key: JobKey) -> float | None:
        """One pass over a job; the first one after the operator's start asks the API server only if there is news."""
        now = datetime.now(UTC)
        if found := self._snapshot.pop(key):
            self._cluster.count(key, found[0])
            with contextlib.suppress(ChangeNeededError):
                return await reconcile(key, Remembered(found, self._cluster), self._options.settings, now)
        return await reconcile(key, self._cluster, self._options.settings, now)

    async def _tick(self) -> None:
        """Look every minute for changes that no watch event told of."""
        while True:
            await asyncio.sleep(TICK_S)
            self.health.ticked()
            try:
                missed = self.health.listed(await job_versions(self._api, self._options.namespaces))
            except Exception as error:
                log.warning("training jobs could not be listed: %s: %s", type(error).__name__, error)
                continue
            metrics.MISSED_EVENTS.inc(len(missed))
            for key in missed:
                self._queue.add(key)


async def job_versions(api: Api, namespaces: tuple[str, ...]) -> dict[JobKey, str]:
    """resourceVersion of every training job in `namespaces` (none: in all)."""
    pages = [api.pages(API_VERSION, KIND, namespace, accept=METADATA_LIST) for namespace in namespaces or ("",)]
    metas = [item["metadata"] for found in pages async for page in found for item in page]
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
