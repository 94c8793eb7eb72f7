"""The parts of the running operator: none of them ends unnoticed."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deepseek_operator.concurrency import StrayError, within
from deepseek_operator.controller import metrics, service
from deepseek_operator.controller.child_watch import ChildWatch
from deepseek_operator.controller.client import Api
from deepseek_operator.controller.cluster import KubernetesCluster
from deepseek_operator.controller.leader import Candidate
from deepseek_operator.controller.service import Operator, Options
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.objects.observed import OwnerKey
from deepseek_operator.settings import Settings
from support.fakes.api_server import FakeApi
from support.fakes.clock import quiet

KEY = OwnerKey("ml", "demo")
OPTIONS = Options(("ml",), leader_elect=True, identity="a", port=0, settings=Settings())


@pytest.fixture
def operator(api: Api, cluster: KubernetesCluster[Any, Any], monkeypatch: pytest.MonkeyPatch) -> Operator:
    """An operator without kopf, whose minute is short."""

    async def supervise(_: Any, stop: asyncio.Event) -> None:
        await stop.wait()

    monkeypatch.setattr(service, "supervise", supervise)
    monkeypatch.setattr(service, "TICK_S", 0.01)
    return Operator(JOBS, OPTIONS, api, cluster)


@asynccontextmanager
async def running(operator: Operator) -> AsyncIterator[asyncio.Task[None]]:
    stop = asyncio.Event()
    task = asyncio.create_task(operator.run(stop))
    yield task
    stop.set()
    await task


@pytest.mark.parametrize("error", [MemoryError("no room"), asyncio.CancelledError("who?")])
async def test_a_part_that_ends_ends_the_operator(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    async def run(_: ChildWatch) -> None:
        raise error

    monkeypatch.setattr(ChildWatch, "run", run)
    with pytest.raises(MemoryError if isinstance(error, MemoryError) else StrayError):
        await within(5, operator.run(asyncio.Event()))


async def test_the_minutes_look_puts_back_a_key_that_nobody_works_on(
    operator: Operator, fake: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = metrics.REVIVED._value.get(), asyncio.Event()
    hangs = True

    async def work(_: OwnerKey) -> None:
        asked.set()
        if hangs:
            await asyncio.Event().wait()

    monkeypatch.setattr(operator._queue, "_work", work)
    async with running(operator):
        operator._queue.add(KEY)
        await asked.wait()
        asked.clear()
        hangs = False
        (worker,) = (task for task in asyncio.all_tasks() if task.get_name() == f"passes over {KEY}")
        worker.cancel()
        await within(5, asked.wait())
        await quiet()
        assert len(operator._queue) == 0
    assert metrics.REVIVED._value.get() - before == 1


async def test_a_minutes_look_that_fails_is_not_the_last_one(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = [ConnectionError("away"), asyncio.CancelledError("who?"), GeneratorExit()]
    looked = asyncio.Event()

    async def versions(*_: Any) -> dict[OwnerKey, str]:
        if errors:
            raise errors.pop()
        looked.set()
        return {}

    monkeypatch.setattr(service, "versions", versions)
    async with running(operator):
        await within(5, looked.wait())


async def test_an_event_that_could_not_be_taken_up_counts_as_missed(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(_: OwnerKey) -> None:
        raise MemoryError

    monkeypatch.setattr(operator._queue, "add", add)
    with pytest.raises(MemoryError):
        operator._wake(service.Sighting(KEY, "7", is_owner=True))
    for _ in range(2):
        missed = operator.health.listed({KEY: "7"})
    assert missed == (KEY,)


async def test_a_replica_whose_election_fails_does_not_lead(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    async def acquire(_: Candidate) -> None:
        raise MemoryError

    monkeypatch.setattr(Candidate, "acquire", acquire)
    led = []
    with pytest.raises(MemoryError):
        async with service._leading(OPTIONS, api, asyncio.Event()):
            led.append(True)
    assert led == []
