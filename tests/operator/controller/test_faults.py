"""A job under an API server that fails: whichever request of whichever pass it is, the job ends as it would without."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from deepseek_operator.api.names import API_VERSION, KIND, PROFILE_KIND
from deepseek_operator.concurrency import first
from deepseek_operator.controller import client, pages
from deepseek_operator.controller.client import Api, path
from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.controller.reconcile import reconcile
from deepseek_operator.controller.workqueue import WorkQueue, alarm
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.look import Live, look
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import JobStatus
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.objects.kind import Reads
from deepseek_operator.objects.observed import OwnerKey, Sighting
from deepseek_operator.settings import Settings
from support.builders.operator import NOW, SETTINGS, a_pod, a_profile_manifest, a_training_job
from support.fakes.faulty_api_server import FAULTS, FaultyApi

KEY = OwnerKey("ml", "demo")
JOB, WORKERS = path(API_VERSION, KIND, "ml", "demo"), path("batch/v1", "Job", "ml", "demo-a1")
PODS, EVENTS = path("v1", "Pod", "ml"), path("v1", "Event", "ml")
PATIENCE_S = 0.1  # with a page
SPEED = 10_000
TIMES = 2  # a fault comes so often, so that a repeated try fails, too

SUPPORTS = ["serviceaccounts", "networkpolicies", "services"]  # applied again while something holds up the pods
MADE = [*SUPPORTS, "persistentvolumeclaims", "jobs"]
READS = [
    *("get deepseektrainingjobs", "get trainingprofiles", "page /progress"),
    *("list jobs", "list pods", "list resourcequotas", "list events"),
    *(f"get {kind}" for kind in MADE),
]
CREATES = [f"create {kind}" for kind in MADE]
WRITES = [
    *("apply deepseektrainingjobs/status", "create events", "delete jobs"),
    *CREATES,
    *(f"apply {kind}" for kind in SUPPORTS),
]


@dataclass
class Story:
    """A job from its first pass to its suspension, over the real queue, passes and client."""

    api: FaultyApi
    cluster: KubernetesCluster[Any, Any]
    queue: WorkQueue

    @property
    def status(self) -> JobStatus:
        return JobStatus.model_validate(self.api.objects[JOB].get("status", {}))

    async def start(self, *, is_new: bool) -> None:
        """The job comes: a watch saw it being created, or a list found it."""
        job = a_training_job({"trainer": {"image": None, "profile": "cpu"}}, resourceVersion="1")
        self.api.objects[JOB] = job
        self.api.objects[path(API_VERSION, PROFILE_KIND, name="cpu")] = a_profile_manifest("cpu")
        self.cluster.saw(Sighting(KEY, "1", is_owner=True, owner=job, is_new=is_new))
        await self._until(lambda: self.status.phase == "Starting")

    async def train(self) -> None:
        """Its pods wait for a Secret, and then run."""
        self.api.objects[WORKERS]["status"] = {"active": 2}
        self._pods("Pending")
        warning = {"reason": "FailedMount", "message": "no such secret", "lastTimestamp": NOW.isoformat()}
        self.api.objects[f"{EVENTS}/a-warning"] = {"kind": "Event"} | warning
        await self._until(lambda: "no such secret" in self.status.message)
        self._pods("Running")
        self.api.pages["/progress"] = {"stage": "training", "step": 7}
        await self._until(lambda: bool(self.status.trainer_status and self.status.trainer_status.step == 7))

    async def suspend(self) -> None:
        """Somebody suspends it, and its pods leave."""
        self.api.objects[JOB]["spec"]["suspend"] = True
        self.api.objects[JOB]["metadata"]["generation"] = 2
        await self._until(lambda: WORKERS not in self.api.objects)
        self.api.objects = {where: found for where, found in self.api.objects.items() if not where.startswith(PODS)}
        await self._until(lambda: self.status.phase == "Suspended")

    def state(self) -> Any:
        """What there is, and what the status says."""
        kinds = sorted(found["kind"] for found in self.api.objects.values() if found["kind"] != "Event")
        truth = {(condition.type, condition.status, condition.reason) for condition in self.status.conditions}
        return kinds, self.status.phase, self.status.message, self.status.attempt, self.status.restarts, truth

    async def _until(self, condition: Callable[[], bool]) -> None:
        """As the watches do, wake the job once for what has happened."""
        self.queue.add(KEY)
        await self.api.until(condition)

    def _pods(self, phase: str) -> None:
        for index in range(2):
            pod = a_pod(index, phase, podIP="127.0.0.1")
            self.api.objects[f"{PODS}/{pod['metadata']['name']}"] = pod


def clock() -> float:
    """The time of the queue, which goes much faster than ours."""
    return time.monotonic() * SPEED


async def wait(event: asyncio.Event, timeout_s: float | None) -> None:
    await alarm(event, timeout_s and timeout_s / SPEED)


def impatient(api: FaultyApi) -> Callable[[float, Coroutine[Any, Any, Any]], Coroutine[Any, Any, Any]]:
    """As concurrency.within, with a deadline that comes as soon as the API server has fallen silent."""

    async def within(_: float, part: Coroutine[Any, Any, Any]) -> Any:
        results = []

        async def keep() -> None:
            results.append(await part)

        async def give_up() -> None:
            await api.silent.wait()
            api.silent.clear()
            raise TimeoutError

        await first(keep(), give_up())
        return results[0]

    return within


@asynccontextmanager
async def a_story(api: FaultyApi) -> AsyncIterator[Story]:
    app, changed = web.Application(), pytest.MonkeyPatch()
    changed.setattr(pages, "TIMEOUT", aiohttp.ClientTimeout(total=PATIENCE_S))
    changed.setattr(client, "within", impatient(api))
    app.router.add_route("*", "/{tail:.*}", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]

    async def look_here(job: TrainingJob, reads: Reads, settings: Settings, now: datetime) -> Observed | None:
        return await look(job, Live(reads, settings, now, metrics_port=port))

    kind = replace(JOBS, look=look_here)
    async with (
        ApiClient(Configuration(host=f"http://127.0.0.1:{port}")) as official,
        aiohttp.ClientSession() as session,
    ):
        cluster = KubernetesCluster(kind, Api(official), session, SETTINGS, now=lambda: NOW)
        queue = WorkQueue(lambda key: reconcile(kind, key, cluster, SETTINGS, NOW), clock=clock, wait=wait)
        api.watch = lambda: queue.add(KEY)
        try:
            yield Story(api, cluster, queue)
        finally:
            changed.undo()
            await queue.close()
            api.closing.set()
            await runner.cleanup()


async def told(api: FaultyApi) -> list[Any]:
    """How a job stands after each part of its story, from a list to its suspension."""
    states = []
    async with a_story(api) as story:
        for part in (story.start(is_new=False), story.train(), story.suspend()):
            await part
            states.append(story.state())
    return states


async def begun(api: FaultyApi) -> Any:
    """How a job stands after it was created and has got its objects."""
    async with a_story(api) as story:
        await story.start(is_new=True)
        return story.state()


@pytest.fixture(scope="module")
def undisturbed() -> tuple[FaultyApi, Any, FaultyApi, list[Any]]:
    """API servers without a fault, and what `begun` and `told` say of them."""
    new, later = FaultyApi(), FaultyApi()
    return new, asyncio.run(begun(new)), later, asyncio.run(told(later))


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_in_answer_to_each_verb_of_a_pass_changes_nothing_in_the_end(
    fault: str, undisturbed: Any
) -> None:
    api = FaultyApi(fault, dict.fromkeys([*READS, *WRITES], TIMES))
    assert await told(api) == undisturbed[3]
    assert [verb for verb, left in api.left.items() if left == TIMES] == [], "each verb met with the fault"


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("verb", CREATES)
async def test_a_fault_in_answer_to_a_create_changes_nothing_in_the_end(
    verb: str, fault: str, undisturbed: Any
) -> None:
    api = FaultyApi(fault, {verb: TIMES})
    assert await begun(api) == undisturbed[1]
    assert api.left[verb] == (TIMES - 1 if fault == "lost answer" else 0), "what is there is not created again"


def test_no_verb_of_a_pass_is_left_out(undisturbed: Any) -> None:
    new, _, later, _ = undisturbed
    assert {*new.verbs, *later.verbs} == {*READS, *WRITES}
