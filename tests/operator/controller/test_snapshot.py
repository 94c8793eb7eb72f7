"""The first passes after the operator's start: over a few lists, and true only where they change nothing."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from deepseek_operator.api.names import KIND
from deepseek_operator.controller.client import Api, ApiError, path
from deepseek_operator.controller.reconcile import reconcile
from deepseek_operator.controller.snapshot import ChangeNeededError, Remembered, Snapshot
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.objects.observed import Manifest, OwnerKey, Sighting
from support.builders.operator import NOW, SETTINGS, FakeCluster, a_job, a_pod, a_training_job, a_worker_job
from support.fakes.api_server import FakeApi
from support.fakes.clock import quiet

KEY = OwnerKey("ml", "demo")


def versioned(manifest: Manifest, version: str) -> Manifest:
    """As lists give it, with what only the API server needs."""
    extra = {"resourceVersion": version, "managedFields": [{"manager": "m"}]}
    listed = {key: value for key, value in manifest.items() if key not in {"apiVersion", "kind"}}
    return listed | {"metadata": manifest["metadata"] | extra}


def lists(fake: FakeApi, workers: list[Manifest], pods: list[Manifest]) -> None:
    """What is there, one object a page."""
    for where, found in ((path("batch/v1", "Job"), workers), (path("v1", "Pod"), pods)):
        pages: list[Any] = [{"items": [item], "metadata": {"continue": "more"}} for item in found]
        fake.answers["GET", where] = 200, [*pages, {"items": [], "metadata": {}}]


async def a_running_job() -> FakeCluster:
    cluster = FakeCluster(a_training_job())
    for _ in range(2):
        await reconcile(JOBS, KEY, cluster, SETTINGS, NOW)
        cluster.start_pods()
    await reconcile(JOBS, KEY, cluster, SETTINGS, NOW)
    assert cluster.status.phase == "Running"
    return cluster


@pytest.fixture
async def running(fake: FakeApi) -> FakeCluster:
    """A running job, in memory and listed by the API server; versions are 1, 2, 3."""
    cluster = await a_running_job()
    assert cluster.job is not None
    worker = cluster.children["Job", "demo-a1"]
    lists(fake, [versioned(worker, "2")], [versioned(pod, "3") for pod in cluster.pods])
    return cluster


async def taken(api: Api, running: FakeCluster) -> Snapshot:
    """With the training job, of which a list has told."""
    assert running.job is not None
    snapshot = Snapshot(JOBS)
    await snapshot.take(api, ())
    snapshot.saw(Sighting(KEY, "1", is_owner=True, listed=versioned(running.job, "1") | {"kind": KIND}))
    return snapshot


async def test_a_pass_over_the_snapshot_is_as_one_over_the_cluster(api: Api, running: FakeCluster) -> None:
    found = (await taken(api, running)).pop(KEY)
    assert [manifest["kind"] for manifest in found] == [KIND, "Job", "Pod", "Pod"]
    assert "managedFields" not in str(found)
    again = await reconcile(JOBS, KEY, Remembered(JOBS, found, running), SETTINGS, NOW)
    assert again == await reconcile(JOBS, KEY, running, SETTINGS, NOW)


async def test_a_pass_that_would_write_is_not_taken_for_true(api: Api, running: FakeCluster, fake: FakeApi) -> None:
    finished = a_worker_job(conditions=("Complete",))
    for workers, pods in (([versioned(finished, "2")], []), ([], [versioned(a_pod(), "3")])):
        lists(fake, workers, pods)
        with pytest.raises(ChangeNeededError):
            await reconcile(JOBS, KEY, Remembered(JOBS, (await taken(api, running)).pop(KEY), running), SETTINGS, NOW)


async def test_what_is_remembered_is_used_once(api: Api, running: FakeCluster) -> None:
    snapshot = await taken(api, running)
    assert snapshot.pop(KEY)
    assert snapshot.pop(KEY) == ()


@pytest.mark.parametrize(("version", "is_remembered"), [("1", True), ("2", True), ("3", True), ("4", False)])
async def test_news_of_the_job_or_of_its_children_outdate_it(
    api: Api, running: FakeCluster, version: str, is_remembered: bool
) -> None:
    snapshot = await taken(api, running)
    snapshot.saw(Sighting(KEY, version))
    assert bool(snapshot.pop(KEY)) is is_remembered


async def test_children_of_another_job_with_that_name_do_not_count(
    api: Api, running: FakeCluster, fake: FakeApi
) -> None:
    namesake = a_pod(5)
    namesake["metadata"]["labels"] |= {"training.dstj.io/job-uid": "another"}
    lists(fake, [], [versioned(namesake, "2")])
    found = (await taken(api, running)).pop(KEY)
    assert (await Remembered(JOBS, found, running).look(a_job())).pods == ()


async def test_of_a_job_that_no_list_told_of_nothing_is_known(api: Api, running: FakeCluster) -> None:
    snapshot = Snapshot(JOBS)
    await snapshot.take(api, ())
    assert snapshot.pop(KEY) == ()


async def test_a_job_without_children_is_looked_at(api: Api, running: FakeCluster, fake: FakeApi) -> None:
    lists(fake, [], [])
    assert (await taken(api, running)).pop(KEY) == ()


async def test_a_later_list_outdates_the_children(api: Api, running: FakeCluster) -> None:
    snapshot = await taken(api, running)
    snapshot.saw(Sighting(KEY, "2"))
    assert running.job is not None
    snapshot.pop(KEY)
    snapshot.saw(Sighting(KEY, "1", is_owner=True, listed=running.job))
    assert snapshot.pop(KEY) == ()


async def test_all_is_forgotten_when_something_was_missed(api: Api, running: FakeCluster) -> None:
    snapshot = await taken(api, running)
    snapshot.forget()
    assert snapshot.pop(KEY) == ()


async def test_without_lists_every_first_pass_looks_by_itself(api: Api, fake: FakeApi, running: FakeCluster) -> None:
    fake.answers["GET", path("v1", "Pod")] = 500, {"message": "busy"}
    assert (await taken(api, running)).pop(KEY) == ()


async def test_a_list_that_is_under_way_when_another_fails_leaves_nothing_behind(running: FakeCluster) -> None:
    slow, worker = asyncio.Event(), versioned(running.children["Job", "demo-a1"], "2")

    class HalfDeaf:
        async def pages(self, _: str, kind: str, *__: Any, **___: Any) -> AsyncIterator[tuple[Manifest, ...]]:
            if kind == "Pod":
                raise ApiError(500, "busy")
            await slow.wait()
            yield (worker,)

    snapshot = await taken(cast(Api, HalfDeaf()), running)
    slow.set()
    await quiet()
    assert running.job is not None
    snapshot.saw(Sighting(KEY, "1", is_owner=True, listed=versioned(running.job, "1")))
    assert snapshot.pop(KEY) == ()
