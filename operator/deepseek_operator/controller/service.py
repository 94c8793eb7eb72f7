"""Puts the running operator together from watches, queue, resync, health and metrics."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import aiohttp
from aiohttp import web
from kubernetes.aio.client import ApiClient
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from deepseek_operator.api.names import API_VERSION, OPERATOR
from deepseek_operator.concurrency import contained, first, gathered
from deepseek_operator.controller import metrics, owner_watch
from deepseek_operator.controller.child_watch import ChildWatch
from deepseek_operator.controller.client import METADATA_LIST, Api, NamespaceLeavingError
from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.controller.failures import Failures
from deepseek_operator.controller.health import Health
from deepseek_operator.controller.leader import ApiLease, Candidate
from deepseek_operator.controller.memory import ChangeNeededError, Memory, Remembered, careful
from deepseek_operator.controller.reconcile import reconcile, report_failure
from deepseek_operator.controller.supervisor import Operate, supervise
from deepseek_operator.controller.workqueue import WorkQueue
from deepseek_operator.objects.kind import AnyKind
from deepseek_operator.objects.observed import OwnerKey, Sighting
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.exposition import with_former_names

log = logging.getLogger(__name__)

TICK_S: Final = 60.0  # between two lists that look for missed events


@dataclass(frozen=True, slots=True)
class Options:
    namespaces: tuple[str, ...]  # empty means all
    leader_elect: bool
    identity: str
    port: int  # of /metrics and /healthz
    settings: Settings


async def serve(kind: AnyKind, options: Options, client: ApiClient, stop: asyncio.Event) -> None:
    """Serve objects of `kind` until `stop` is set or the lease is lost."""
    api = Api(client)
    async with aiohttp.ClientSession(trust_env=False) as session:
        operator = Operator(kind, options, api, KubernetesCluster(kind, api, session, options.settings))
        async with _probes(operator.health, options.port), _leading(options, api, stop):
            if not stop.is_set():
                await operator.run(stop)


class Operator:
    """Watches wake the queue, and its passes act on the cluster."""

    def __init__(self, kind: AnyKind, options: Options, api: Api, cluster: KubernetesCluster[Any, Any]) -> None:
        self._kind, self._options, self._api, self._cluster = kind, options, api, cluster
        self._memory, self._careful = Memory(kind), careful(kind, cluster.pause_s)
        self._queue = WorkQueue(self._pass)
        self._failures = Failures(self._report)
        self.health = Health(time.monotonic, self._queue.oldest_s, TICK_S)
        metrics.QUEUE_DEPTH.set_function(lambda: len(self._queue))
        metrics.QUEUE_OLDEST.set_function(self._queue.oldest_s)

    async def run(self, stop: asyncio.Event) -> None:
        """Run until `stop` is set, or until a part fails: then the kubelet starts the operator again."""
        namespaces = self._options.namespaces
        watches = [
            ChildWatch(
                self._api,
                child,
                self._kind.labels.name,
                namespace,
                self._memory,
                woken=self._wake,
                missed=self._queue.add_all,
            )
            for child in self._kind.children
            for namespace in namespaces or ("",)
        ]
        await gathered(*(watch.begin() for watch in watches))
        try:
            await first(supervise(self._watch_owners(), stop), self._tick(), *(watch.run() for watch in watches))
        finally:
            await self._queue.close()

    def _watch_owners(self) -> Operate:
        """The function that runs kopf.  kopf runs in an event loop of its own and reports to this one what it sees.

        Its context variables stay there.  They hold a whole object, and the tasks of the queue would keep it in memory.
        """
        loop, own = asyncio.get_running_loop(), copy_context()

        def woken(sighting: Sighting) -> None:
            loop.call_soon_threadsafe(self._wake, sighting, context=own)

        registry = owner_watch.registry(self._kind.plural, woken)

        async def operate(stop: asyncio.Event) -> None:
            await owner_watch.watch(registry, owner_watch.settings(), self._options.namespaces, stop)

        return operate

    def _wake(self, sighting: Sighting) -> None:
        if sighting.is_owner:
            self._memory.saw(sighting)
        self._cluster.saw(sighting)
        if not self._cluster.is_echo(sighting):
            self._queue.add(sighting.key)
        if sighting.is_owner:
            self.health.heard(sighting.key, sighting.version)  # last: what fails before is an event that was missed

    async def _pass(self, key: OwnerKey) -> float | None:
        """Run one pass.  After several that failed, the status tells of it."""
        try:
            delay = await self._look(key)
        except NamespaceLeavingError:
            delay = self._options.settings.resync_s  # the owner will soon be deleted, too
        except Exception as error:
            await self._failures.failed(key, error)
            raise
        self._failures.ended(key)
        return delay

    async def _report(self, key: OwnerKey, error: str) -> None:
        await report_failure(self._kind, key, self._cluster, error, datetime.now(UTC))

    async def _look(self, key: OwnerKey) -> float | None:
        """Run a pass over what the watches saw, and over the cluster if there is more to do than to report."""
        now, settings = datetime.now(UTC), self._options.settings
        if found := self._memory.of(key, self._cluster.written(key)):
            self._cluster.count(key, found[0])
            with contextlib.suppress(ChangeNeededError):
                remembered = Remembered(self._kind, found, self._cluster, settings, now)
                return await reconcile(self._careful, key, remembered, settings, now)
        return await reconcile(self._kind, key, self._cluster, settings, now)

    async def _tick(self) -> None:
        """Every minute, look for keys that nobody works on, and for changes that no watch event reported."""
        while True:
            await asyncio.sleep(TICK_S)
            self.health.ticked()
            self._queue.revive()
            known = self._memory.owners()
            try:
                found = await contained(versions(self._api, self._kind.name, self._options.namespaces))
            except Exception as error:
                log.warning(
                    "objects of kind %s could not be listed: %s: %s", self._kind.name, type(error).__name__, error
                )
                continue
            self._memory.forget(key for key in known if key not in found)
            missed = self.health.listed(found)
            metrics.MISSED_EVENTS.inc(len(missed))
            for key in missed:
                self._queue.add(key)


async def versions(api: Api, kind: str, namespaces: tuple[str, ...]) -> dict[OwnerKey, str]:
    """The resourceVersion of every object of `kind` in `namespaces` (none means all)."""
    pages = [api.pages(API_VERSION, kind, namespace, accept=METADATA_LIST) for namespace in namespaces or ("",)]
    metas = [item["metadata"] for found in pages async for page in found for item in page.items]
    return {OwnerKey(meta["namespace"], meta["name"]): meta["resourceVersion"] for meta in metas}


@asynccontextmanager
async def _leading(options: Options, api: Api, stop: asyncio.Event) -> AsyncIterator[None]:
    """Wait for the lease, stop the operator when the lease is lost, and hand it over at the end."""
    if not options.leader_elect:
        metrics.LEADER.set(1)
        yield
        metrics.LEADER.set(0)
        return
    candidate = Candidate(ApiLease(api, options.settings.operator_namespace, OPERATOR), options.identity)
    await first(candidate.acquire(), stop.wait())
    holding = asyncio.create_task(candidate.hold())
    holding.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        lost = holding.done()
        holding.cancel()
        if not lost:
            await candidate.release()


@asynccontextmanager
async def _probes(health: Health, port: int) -> AsyncIterator[None]:
    """Serve /metrics for Prometheus and /healthz for the kubelet."""

    async def healthz(_: web.Request) -> web.Response:
        problems = health.problems()
        return web.Response(text="\n".join(problems) or "ok", status=503 if problems else 200)

    async def exposition(_: web.Request) -> web.Response:
        return web.Response(body=with_former_names(generate_latest()), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", exposition)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    try:
        yield
    finally:
        await runner.cleanup()
