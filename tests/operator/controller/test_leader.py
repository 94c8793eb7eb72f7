"""One leader at a time, in time that the test moves by hand."""

import asyncio
import copy
from datetime import UTC, datetime

import pytest

from deepseek_operator.controller.leader import RENEW_WITHIN_S, Candidate
from deepseek_operator.objects.observed import Manifest
from support.fakes.clock import FakeTime, ended, quiet


class Store:
    """A Lease with the API server's optimistic lock."""

    def __init__(self) -> None:
        self.lease: Manifest | None = None
        self.is_broken = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def read(self) -> Manifest | None:
        await self.answers.wait()
        if self.is_broken:
            raise ConnectionError("API server is away")
        return copy.deepcopy(self.lease)

    async def write(self, lease: Manifest) -> bool:
        if self.is_broken:
            raise ConnectionError("API server is away")
        version = lease.get("metadata", {}).get("resourceVersion", 0)
        current = self.lease["metadata"]["resourceVersion"] if self.lease else 0
        if version != current:
            return False
        self.lease = {**lease, "metadata": {"resourceVersion": current + 1}}
        return True

    @property
    def holder(self) -> str:
        assert self.lease is not None
        return str(self.lease["spec"]["holderIdentity"])


def a_candidate(store: Store, time: FakeTime, identity: str) -> Candidate:
    def now() -> datetime:
        return datetime.fromtimestamp(time.now, UTC)

    return Candidate(store, identity, time.clock, time.sleep, time.within, now)


async def test_the_first_one_leads_and_the_second_waits() -> None:
    store, time = Store(), FakeTime()
    await a_candidate(store, time, "a").acquire()
    second = asyncio.create_task(a_candidate(store, time, "b").acquire())
    await time.advance(10)
    assert (store.holder, second.done()) == ("a", False)
    await ended(second)


async def test_a_lease_that_is_renewed_is_never_taken() -> None:
    store, time = Store(), FakeTime()
    leader = a_candidate(store, time, "a")
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    second = asyncio.create_task(a_candidate(store, time, "b").acquire())
    await time.advance(300)
    assert (store.holder, holding.done(), second.done()) == ("a", False, False)
    await ended(holding)
    await ended(second)


async def test_a_dead_leader_is_followed_after_its_lease() -> None:
    store, time = Store(), FakeTime()
    await a_candidate(store, time, "a").acquire()
    second = asyncio.create_task(a_candidate(store, time, "b").acquire())
    await time.advance(14)
    assert store.holder == "a"
    await time.advance(4)
    assert (store.holder, second.done()) == ("b", True)
    assert store.lease is not None
    assert store.lease["spec"]["leaseTransitions"] == 1


async def test_a_leader_that_cannot_renew_stops_before_another_can_lead() -> None:
    store, time = Store(), FakeTime()
    leader = a_candidate(store, time, "a")
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    await quiet()
    store.is_broken = True
    await time.advance(9)
    assert not holding.done()
    await time.advance(3)
    assert holding.done()


@pytest.mark.parametrize("hangs_after_s", [1.0, 3.9, 5.5])
async def test_a_leader_whose_api_server_hangs_stops_in_time(hangs_after_s: float) -> None:
    store, time = Store(), FakeTime()
    leader = a_candidate(store, time, "a")
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    await time.advance(hangs_after_s)
    assert store.lease is not None
    renewed = datetime.fromisoformat(store.lease["spec"]["renewTime"]).timestamp()
    store.answers.clear()
    await time.advance(renewed + RENEW_WITHIN_S - time.now)
    assert holding.done()


async def test_a_leader_counts_from_before_a_slow_answer() -> None:
    store, time = Store(), FakeTime()
    store.answers.clear()
    leader = a_candidate(store, time, "a")
    acquiring = asyncio.create_task(leader.acquire())
    await time.advance(4)
    store.answers.set()
    await quiet()
    assert acquiring.done()
    store.answers.clear()
    holding = asyncio.create_task(leader.hold())
    await time.advance(RENEW_WITHIN_S - 4)
    assert holding.done()


async def test_a_short_outage_costs_nothing() -> None:
    store, time = Store(), FakeTime()
    leader = a_candidate(store, time, "a")
    await leader.acquire()
    holding = asyncio.create_task(leader.hold())
    store.is_broken = True
    await time.advance(7)
    store.is_broken = False
    await time.advance(60)
    assert not holding.done()
    await ended(holding)


async def test_a_released_lease_is_free_at_once() -> None:
    store, time = Store(), FakeTime()
    leader = a_candidate(store, time, "a")
    await leader.acquire()
    await leader.release()
    await a_candidate(store, time, "b").acquire()
    assert store.holder == "b"


async def test_of_two_that_try_at_once_one_leads() -> None:
    store, time = Store(), FakeTime()
    both = [asyncio.create_task(a_candidate(store, time, name).acquire()) for name in ("a", "b")]
    await time.advance(10)
    assert sorted(task.done() for task in both) == [False, True]
    for task in both:
        await ended(task)
