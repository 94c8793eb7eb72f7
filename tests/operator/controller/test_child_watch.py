"""The watches of worker jobs and pods: what wakes whom, and what survives."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client import ApiClient, Configuration

from deepseek_operator.controller.child_watch import ChildWatch
from deepseek_operator.controller.client import Api, path
from deepseek_operator.controller.memory import Memory
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.labels import JOB_NAME
from deepseek_operator.jobs.look import POD, WORKER_JOB
from deepseek_operator.objects.kind import Child
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting
from support.builders.operator import a_pod, a_training_job, a_worker_job, terminated
from support.fakes.clock import ended, quiet

KEY = OwnerKey("ml", "demo")


@dataclass
class Stream:
    """An API server that answers each watch with the next of `answers`, and the last of them without an end."""

    answers: list[tuple[int, list[Manifest]]]
    lists: list[int] = field(default_factory=lambda: [200])  # status of each list; the last one for all that follow
    items: list[list[Manifest]] = field(default_factory=lambda: [[]])  # of each list, as `lists`
    asked: list[dict[str, str]] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(dict(request.query))
        if "watch" in request.query:
            return await self._stream(request)
        status = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        items = self.items.pop(0) if len(self.items) > 1 else self.items[0]
        return web.json_response({"metadata": {"resourceVersion": "5"}, "items": items}, status=status)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        status, events = self.answers.pop(0) if self.answers else (200, [])
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for event in events:
            await response.write(json.dumps(event).encode() + b"\n")
        if not self.answers:
            await self.over.wait()
        return response

    def versions(self) -> list[str]:
        """From which each watch began."""
        return [query["resourceVersion"] for query in self.asked if "watch" in query]


def event(type_: str, manifest: Manifest, version: str) -> Manifest:
    meta = manifest["metadata"] | {"resourceVersion": version}
    return {"type": type_, "object": manifest | {"metadata": meta}}


def bookmark(version: str) -> Manifest:
    return {"type": "BOOKMARK", "object": {"kind": "Pod", "metadata": {"resourceVersion": version}}}


def error(code: int) -> Manifest:
    return {"type": "ERROR", "object": {"kind": "Status", "code": code, "message": "too old"}}


@dataclass
class Watched:
    woken: list[Sighting] = field(default_factory=list)
    missed: list[None] = field(default_factory=list)
    memory: Memory = field(default_factory=lambda: Memory(JOBS))

    def known(self) -> dict[str, str]:
        """The phase of each pod of the job in the memory, by name."""
        self.memory.saw(Sighting(KEY, "1", is_owner=True, owner=a_training_job()))
        pods = self.memory.of(KEY)[1:]
        return {pod["metadata"]["name"]: pod["status"].get("phase", "") for pod in pods}


Watching = Callable[..., Awaitable[Watched]]


@pytest.fixture
async def watching() -> AsyncIterator[Watching]:
    """Run a watch against a Stream until the test ends."""
    async with AsyncExitStack() as stack:

        async def start(stream: Stream, child: Child = POD, namespace: str = "") -> Watched:
            app, seen = web.Application(), Watched()
            app.router.add_get(path(child.api_version, child.kind, namespace), stream.answer)
            runner = web.AppRunner(app)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            stack.callback(stream.over.set)
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host = f"http://127.0.0.1:{runner.addresses[0][1]}"
            client = await stack.enter_async_context(ApiClient(Configuration(host=host)))
            watch = ChildWatch(
                Api(client),
                child,
                JOB_NAME,
                namespace,
                seen.memory,
                woken=seen.woken.append,
                missed=lambda: seen.missed.append(None),
                pause_s=0.01,
            )
            await watch.begin()
            stack.push_async_callback(ended, asyncio.create_task(watch.run()))
            return seen

        yield start


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


async def test_every_change_of_a_pod_wakes_its_job(watching: Watching) -> None:
    last = a_pod(0, "Failed", **terminated(143, '{"step": 14}'))
    events = [event("ADDED", a_pod(), "6"), event("MODIFIED", a_pod(), "7"), event("DELETED", last, "8")]
    seen = await watching(Stream([(200, events)]))
    await until(lambda: len(seen.woken) == 3)
    assert seen.woken[:2] == [Sighting(KEY, "6"), Sighting(KEY, "7")]
    assert seen.woken[2].departed["status"]["containerStatuses"] == last["status"]["containerStatuses"]
    assert seen.missed == []


async def test_every_change_of_a_worker_job_wakes_its_job(watching: Watching) -> None:
    job = a_worker_job()
    events = [event("ADDED", job, "6"), event("MODIFIED", job, "7"), event("DELETED", job, "8")]
    seen = await watching(Stream([(200, events)]), WORKER_JOB, "ml")
    await until(lambda: len(seen.woken) == 3)
    assert seen.woken == [Sighting(KEY, "6"), Sighting(KEY, "7"), Sighting(KEY, "8")]


async def test_a_watch_that_ends_goes_on_where_it_was(watching: Watching) -> None:
    stream = Stream([(200, [event("MODIFIED", a_pod(), "7")]), (200, [bookmark("9")]), (200, [])])
    seen = await watching(stream)
    await until(lambda: len(stream.versions()) == 3)
    assert stream.versions() == ["5", "7", "9"]
    assert (len(seen.woken), seen.missed) == (1, [])


@pytest.mark.parametrize("answer", [(410, []), (200, [error(410)])])
async def test_what_the_api_server_no_longer_knows_was_missed(watching: Watching, answer: Any) -> None:
    stream = Stream([(200, [bookmark("9")]), answer, (200, [])])
    seen = await watching(stream)
    await until(lambda: len(stream.versions()) == 3)
    assert stream.versions() == ["5", "9", "5"]
    assert seen.missed == [None]


@pytest.mark.parametrize(
    "answers", [[(status, [])] for status in (401, 403, 404, 429, 500, 504)] + [[(200, [error(500)])]]
)
async def test_a_watch_that_fails_is_tried_again_from_where_it_was(watching: Watching, answers: Any) -> None:
    stream = Stream([(200, [bookmark("9")]), *answers, (200, [event("MODIFIED", a_pod(), "10")])])
    seen = await watching(stream)
    await until(lambda: bool(seen.woken))
    assert stream.versions() == ["5", "9", "9"]
    assert seen.missed == []


@pytest.mark.parametrize("stray", [asyncio.CancelledError("who?"), GeneratorExit()])
async def test_a_watch_that_nobody_cancelled_goes_on(
    watching: Watching, monkeypatch: pytest.MonkeyPatch, stray: BaseException
) -> None:
    follow, errors = ChildWatch._follow, [stray]

    async def interrupted(watch: ChildWatch) -> None:
        await follow(watch)
        if errors:
            raise errors.pop()

    monkeypatch.setattr(ChildWatch, "_follow", interrupted)
    seen = await watching(Stream([(200, [bookmark("9")]), (200, [event("MODIFIED", a_pod(), "10")])]))
    await until(lambda: bool(seen.woken))
    assert (errors, seen.missed) == ([], [])


async def test_an_event_that_makes_no_sense_is_passed_over(watching: Watching) -> None:
    nobody = {"metadata": {"name": "nobody", "namespace": "ml"}, "kind": "Pod"}
    stream = Stream([(200, [event("MODIFIED", nobody, "6")]), (200, [event("MODIFIED", a_pod(), "7")])])
    seen = await watching(stream)
    await until(lambda: bool(seen.woken))
    assert stream.versions() == ["5", "6"]


async def test_a_watch_that_could_not_begin_says_that_it_missed_something(watching: Watching) -> None:
    seen = await watching(Stream([(200, [event("MODIFIED", a_pod(), "7")])], lists=[500, 500, 200]))
    await until(lambda: bool(seen.woken))
    assert seen.missed == [None]


async def test_a_watch_asks_only_for_what_was_made_for_training_jobs(watching: Watching) -> None:
    stream = Stream([(200, [])])
    await watching(stream)
    await until(lambda: bool(stream.versions()))
    await quiet()
    assert {query["labelSelector"] for query in stream.asked} == {"training.dstj.io/job-name"}


async def test_what_a_watch_saw_is_in_the_memory(watching: Watching) -> None:
    events = [event("MODIFIED", a_pod(0, "Failed"), "6"), event("ADDED", a_pod(1), "7")]
    seen = await watching(Stream([(200, events)], items=[[a_pod(0, "Pending")]]))
    await until(lambda: len(seen.woken) == 2)
    assert seen.known() == {"demo-a1-0-xxxxx": "Failed", "demo-a1-1-xxxxx": "Running"}


async def test_what_was_deleted_is_no_longer_in_the_memory(watching: Watching) -> None:
    seen = await watching(Stream([(200, [event("DELETED", a_pod(0), "6")])], items=[[a_pod(0), a_pod(1)]]))
    await until(lambda: len(seen.woken) == 1)
    assert list(seen.known()) == ["demo-a1-1-xxxxx"]


async def test_a_list_after_missed_events_replaces_what_is_in_the_memory(watching: Watching) -> None:
    seen = await watching(Stream([(410, []), (200, [])], items=[[a_pod(0), a_pod(1)], [a_pod(1, "Succeeded")]]))
    await until(lambda: bool(seen.missed))
    assert seen.known() == {"demo-a1-1-xxxxx": "Succeeded"}


@pytest.mark.parametrize(
    ("child", "found"),
    [(POD, a_pod(machine=None)), (WORKER_JOB, {**a_worker_job(), "status": {}})],
    ids=["pod-without-machine", "worker-job-that-nobody-looked-at"],
)
async def test_what_is_no_news_for_its_job_wakes_nobody(watching: Watching, child: Child, found: Manifest) -> None:
    stream = Stream([(200, [event("ADDED", found, "6"), bookmark("7")]), (200, [event("DELETED", found, "8")])])
    seen = await watching(stream, child)
    await until(lambda: bool(seen.woken))
    assert [sighting.version for sighting in seen.woken] == ["8"]
