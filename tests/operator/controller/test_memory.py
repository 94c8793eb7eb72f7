"""What the watches saw: when it is believed, and passes over it, which never do more than report."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from deepseek_operator.controller.memory import FRESH_S, ChangeNeededError, Memory, Remembered, careful
from deepseek_operator.controller.reconcile import reconcile
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.look import POD, POLICY, WORKER_JOB
from deepseek_operator.objects.kind import Child
from deepseek_operator.objects.observed import Manifest, Notice, Owner, OwnerKey, Sighting, WarningEvent
from support.builders.operator import NOW, SETTINGS, FakeCluster, a_pod, a_training_job, a_worker_job, merged
from support.fakes.clock import FakeTime

KEY = OwnerKey("ml", "demo")
WATCHES = {"Job": WORKER_JOB, "Pod": POD, "NetworkPolicy": POLICY}


@dataclass
class Reads:
    """The cluster behind a pass over the memory.  Lists count."""

    world: "World"

    async def children(self, _: Owner, child: Child) -> tuple[Manifest, ...]:
        self.world.looks += 1
        found = [*self.world.children.values(), *self.world.pods]
        return tuple(each for each in found if each["kind"] == child.kind)

    async def quotas(self, _: str) -> tuple[Manifest, ...]:
        self.world.looks += 1
        return ()

    def departed(self, _: Owner) -> tuple[Manifest, ...]:
        return ()

    async def page(self, *_: Any) -> bytes | None:
        return None

    async def warnings(self, _: Manifest) -> tuple[WarningEvent, ...]:
        return ()

    async def set_status(self, owner: Owner, status: Manifest) -> None:
        await self.world.set_status(owner, status)

    async def emit(self, owner: Owner, notice: Notice) -> None:
        await self.world.emit(owner, notice)


class World(FakeCluster):
    """A cluster in memory, whose watches have told all.  It counts what is asked."""

    def __init__(self, job: Manifest) -> None:
        super().__init__(job)
        self.time = FakeTime()
        self.memory = Memory(JOBS, self.time.clock)
        self.looks = 0
        self.pause_s = 0.0  # since the last report
        self.reads = Reads(self)
        for watch in WATCHES:
            self.memory.expect(watch)

    async def observe(self, *arguments: Any) -> Any:
        self.looks += 1
        return await super().observe(*arguments)

    def tell(self) -> None:
        """The watches tell all that there is."""
        assert self.job is not None
        self.memory.saw(Sighting(KEY, "7", is_owner=True, owner=merged(self.job, {"metadata": {"managedFields": [1]}})))
        for kind, child in WATCHES.items():
            for each in (*self.children.values(), *self.pods):
                if each["kind"] == kind:
                    self.memory.keep(kind, child, each)
            self.memory.heard(kind)

    async def a_pass(self) -> float | None:
        """A pass over the memory, as it is now."""
        found = self.memory.of(KEY)
        assert found, "the memory does not know the job"
        remembered = Remembered(JOBS, found, self.reads, SETTINGS, NOW)
        return await reconcile(careful(JOBS, lambda _: self.pause_s), KEY, remembered, SETTINGS, NOW)


async def a_job_with_pods(phase: str = "Pending", machine: str | None = None) -> World:
    world = World(a_training_job())
    for _ in range(2):
        await reconcile(JOBS, KEY, world, SETTINGS, NOW)
    world.pods = [a_pod(index, phase, machine=machine) for index in range(2)]
    for worker in world.children.values():
        worker["status"] = {"active": 2}
    await reconcile(JOBS, KEY, world, SETTINGS, NOW)
    world.looks, world.log = 0, []
    world.tell()
    return world


async def test_a_pass_over_a_job_that_waits_asks_for_nothing() -> None:
    world = await a_job_with_pods()
    over_the_cluster = await reconcile(JOBS, KEY, world, SETTINGS, NOW)
    world.looks = 0
    assert await world.a_pass() == over_the_cluster
    assert (world.looks, world.log) == (0, [])


async def test_a_pass_over_the_memory_reports_what_goes_on() -> None:
    world = await a_job_with_pods()
    world.pods = [a_pod(index, "Running") for index in range(2)]
    world.tell()
    await world.a_pass()
    assert (world.looks, world.log) == (0, ["status", "event AllNodesReady"])
    assert world.status.phase == "Running"


async def test_one_more_pod_is_reported_after_a_pause_and_a_transition_at_once() -> None:
    world = await a_job_with_pods()
    world.pause_s = 3.0
    world.pods = [a_pod(0, "Running"), a_pod(1, "Pending")]
    world.tell()
    assert await world.a_pass() == world.pause_s
    assert world.log == []
    world.pods = [a_pod(index, "Running") for index in range(2)]
    world.tell()
    await world.a_pass()
    assert world.log == ["status", "event AllNodesReady"]
    world.pods[0]["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"
    world.pause_s = 0.0
    world.tell()
    await world.a_pass()
    assert world.log[2:] == ["status", "event PodsStarting"]


def the_job_fails(world: World) -> None:
    world.finish(1, "Failed", exit_code=1)


def the_job_completes(world: World) -> None:
    world.finish(1, "Complete")


def somebody_suspends_it(world: World) -> None:
    world.change_spec(suspend=True)


def a_pod_cannot_be_placed(world: World) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
    world.pods[0]["status"]["conditions"].append(condition)


def the_worker_job_is_deleted(world: World) -> None:
    world.children["Job", "demo-a1"]["metadata"]["deletionTimestamp"] = "2026-01-02T03:04:05Z"


def its_policy_is_deleted(world: World) -> None:
    world.memory.drop(world.children.pop(("NetworkPolicy", "dstj-demo"))["metadata"]["uid"])


def somebody_takes_its_policy_over(world: World) -> None:
    world.children["NetworkPolicy", "dstj-demo"]["metadata"]["ownerReferences"] = []


@pytest.mark.parametrize(
    "happening",
    [
        its_policy_is_deleted,
        somebody_takes_its_policy_over,
        the_job_fails,
        the_job_completes,
        somebody_suspends_it,
        a_pod_cannot_be_placed,
        the_worker_job_is_deleted,
    ],
)
async def test_whatever_asks_for_more_than_a_report_is_looked_at_again(happening: Callable[[World], None]) -> None:
    world = await a_job_with_pods()
    happening(world)
    world.tell()
    with pytest.raises(ChangeNeededError):
        await world.a_pass()
    assert world.log == []


async def test_pods_that_the_memory_does_not_know_yet_are_asked_for() -> None:
    world = await a_job_with_pods()
    world.memory.drop(world.pods[1]["metadata"]["uid"])
    await world.a_pass()
    assert (world.looks, world.log) == (2, []), "worker jobs and pods"


def test_only_what_decisions_read_is_kept() -> None:
    memory = Memory(JOBS)
    pod = merged(a_pod(), {"metadata": {"annotations": {"training.dstj.io/config": "{}"}, "managedFields": [{}]}})
    memory.keep("pods", POD, merged(pod, {"spec": {"containers": [{}]}}))
    memory.keep("jobs", WORKER_JOB, a_worker_job())
    memory.saw(Sighting(KEY, "7", is_owner=True, owner=a_training_job(managedFields=[{}])))
    _, kept, worker = memory.of(KEY)
    assert kept == a_pod()
    assert worker == merged(a_worker_job(), {"metadata": {"annotations": {}}})
    assert "managedFields" not in str(memory.of(KEY))


@pytest.fixture
def memory() -> tuple[Memory, FakeTime]:
    """A memory that knows a job and its worker job."""
    time = FakeTime()
    memory = Memory(JOBS, time.clock)
    memory.expect("jobs")
    memory.keep("jobs", WORKER_JOB, a_worker_job())
    memory.heard("jobs")
    memory.saw(Sighting(KEY, "7", is_owner=True, owner=a_training_job()))
    return memory, time


Known = tuple[Memory, FakeTime]


def test_a_watch_that_does_not_know_all_yet_makes_the_memory_unknown(memory: Known) -> None:
    assert memory[0].of(KEY)
    memory[0].expect("pods")
    assert memory[0].of(KEY) == ()


def test_what_a_silent_watch_saw_is_not_believed_for_long(memory: Known) -> None:
    memory[1].now += FRESH_S
    assert memory[0].of(KEY)
    memory[1].now += 1
    assert memory[0].of(KEY) == ()
    memory[0].heard("jobs")
    assert memory[0].of(KEY)


@pytest.mark.parametrize(("written", "is_known"), [("", True), ("7", True), ("6", True), ("8", False), ("10", False)])
def test_a_job_from_before_its_last_status_is_an_old_one(memory: Known, written: str, is_known: bool) -> None:
    assert bool(memory[0].of(KEY, written)) is is_known


def test_a_deleted_job_is_forgotten(memory: Known) -> None:
    memory[0].saw(Sighting(KEY, "8", is_owner=True))
    assert memory[0].of(KEY) == ()


def test_a_job_whose_deletion_no_event_reported_is_forgotten_after_a_list(memory: Known) -> None:
    assert memory[0].owners() == (KEY,)
    memory[0].forget(memory[0].owners())
    assert memory[0].of(KEY) == ()


def test_a_job_without_children_is_looked_at(memory: Known) -> None:
    uid = a_worker_job()["metadata"]["uid"]
    memory[0].drop(uid)
    assert memory[0].of(KEY) == ()
    memory[0].drop(uid)


def test_a_child_whose_label_somebody_changed_has_one_owner(memory: Known) -> None:
    memory[0].keep("pods", POD, a_pod())
    memory[0].keep("pods", POD, merged(a_pod(), {"metadata": {"labels": {"training.dstj.io/job-name": "another"}}}))
    assert [manifest["kind"] for manifest in memory[0].of(KEY)[1:]] == ["Job"]


def test_a_list_tells_only_of_what_its_own_watch_is_about(memory: Known) -> None:
    memory[0].keep("pods", POD, a_pod())
    memory[0].keep_only("pods", ())
    assert [manifest["kind"] for manifest in memory[0].of(KEY)[1:]] == ["Job"]
