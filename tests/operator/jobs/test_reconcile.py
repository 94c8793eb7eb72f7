"""The pass: order of its writes, crashes between them, and whole lives of jobs against a cluster in memory."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_operator.controller.reconcile import RefusedError, reconcile
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.labels import attempt_of
from deepseek_operator.jobs.status import JobStatus, Phase
from deepseek_operator.objects.observed import Manifest, OwnerKey
from deepseek_operator.objects.plan import Cause, Refusal
from support.builders.operator import (
    NOW,
    SETTINGS,
    CrashError,
    FakeCluster,
    a_profile_manifest,
    a_quota,
    a_training_job,
    a_warning,
)

KEY = OwnerKey("ml", "demo")
NO_ROOM = a_quota({"pods": "3"}, {"pods": "2"})


async def a_pass(cluster: FakeCluster, seconds: int = 0) -> float | None:
    return await reconcile(JOBS, KEY, cluster, SETTINGS, NOW + timedelta(seconds=seconds))


async def settle(cluster: FakeCluster, seconds: int = 0) -> None:
    """Passes until one of them writes nothing."""
    for _ in range(20):
        writes = len(cluster.log)
        await a_pass(cluster, seconds)
        if len(cluster.log) == writes:
            return
    raise AssertionError(f"does not settle: {cluster.log}")


async def test_the_status_is_written_last_and_told_after() -> None:
    cluster = FakeCluster(a_training_job())
    await settle(cluster)
    assert [entry.split()[0] for entry in cluster.log] == ["apply"] * 5 + ["status", "event"]
    assert cluster.status.phase is Phase.STARTING


async def test_what_a_pass_makes_is_told_by_the_next_one() -> None:
    cluster = FakeCluster(a_training_job())
    assert await a_pass(cluster) == SETTINGS.first_report_s
    assert cluster.log[-1] == "apply Job demo-a1"
    assert cluster.status.phase is None


async def test_a_settled_job_costs_no_write() -> None:
    cluster = FakeCluster(a_training_job())
    await settle(cluster)
    cluster.start_pods()
    await settle(cluster)
    writes = len(cluster.log)
    assert await a_pass(cluster, seconds=3600) == SETTINGS.progress_interval_s
    assert len(cluster.log) == writes


async def test_a_job_from_start_to_end_costs_few_writes() -> None:
    cluster = FakeCluster(a_training_job())
    await settle(cluster)
    cluster.start_pods()
    await settle(cluster)
    cluster.finish(1, "Complete")
    await settle(cluster)
    assert cluster.status.phase is Phase.SUCCEEDED
    assert sum(not entry.startswith("event") for entry in cluster.log) <= 9


@pytest.mark.parametrize("manifest", [None, a_training_job(deletionTimestamp="2026-01-01T00:00:00Z")])
async def test_a_job_that_goes_is_left_to_kubernetes(manifest: Manifest | None) -> None:
    cluster = FakeCluster(manifest)
    assert await a_pass(cluster) is None
    assert cluster.log == []


async def test_a_spec_that_cannot_work_ends_in_the_status_and_is_not_retried() -> None:
    cluster = FakeCluster(a_training_job({"optimization": {"globalBatchSize": 7}}))
    assert await a_pass(cluster) is None
    assert cluster.log == ["status", "event InvalidSpec"]
    assert "globalBatchSize must be a multiple" in cluster.status.message
    assert "given: optimization.globalBatchSize: 7, trainer.numNodes: 2" in cluster.status.message
    cluster.change_spec(optimization={"globalBatchSize": 8})
    await settle(cluster)
    assert cluster.worker_jobs == ["demo-a1"]


async def test_the_status_shows_the_beginning_of_a_value_that_breaks_a_rule() -> None:
    cluster = FakeCluster(a_training_job({"trainer": {"image": 1000 * "x"}}))
    await a_pass(cluster)
    assert "spec.trainer.image: must be NAME@sha256:DIGEST" in cluster.status.message
    assert cluster.status.message.endswith(f"given: '{56 * 'x'}...")


async def test_a_profile_is_read_by_its_name() -> None:
    cluster = FakeCluster(a_training_job({"trainer": {"image": None, "profile": "cpu"}}))
    assert await a_pass(cluster) == SETTINGS.refused_retry_s
    cluster.profiles["cpu"] = a_profile_manifest("cpu", nodeSelector={"pool": "cpu"})
    await settle(cluster)
    pod = cluster.children["Job", "demo-a1"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "cpu"}


async def test_a_profile_that_breaks_a_rule_is_reported_and_waited_for() -> None:
    cluster = FakeCluster(a_training_job({"trainer": {"image": None, "profile": "cpu"}}))
    cluster.profiles["cpu"] = a_profile_manifest("cpu", image="registry.local/trainer:latest")
    assert await a_pass(cluster) == SETTINGS.refused_retry_s
    assert cluster.notices[-1].reason == "ProfileInvalid"
    assert cluster.status.message.startswith("TrainingProfile 'cpu': spec.image: ")
    assert "since a tag may mean another image tomorrow" in cluster.status.message
    assert cluster.status.message.endswith("given: 'registry.local/trainer:latest'")
    cluster.profiles["cpu"] = a_profile_manifest("cpu")
    await settle(cluster)
    assert cluster.worker_jobs == ["demo-a1"]


async def test_a_job_whose_profile_breaks_a_rule_can_be_suspended() -> None:
    cluster = FakeCluster(a_training_job({"trainer": {"image": None, "profile": "cpu"}}))
    cluster.profiles["cpu"] = a_profile_manifest("cpu")
    await settle(cluster)
    cluster.profiles["cpu"] = a_profile_manifest("cpu", image=7)
    cluster.change_spec(suspend=True)
    await settle(cluster)
    assert (cluster.worker_jobs, cluster.status.phase) == ([], Phase.SUSPENDED)


async def test_a_job_waits_for_what_its_deleted_namesake_left_and_goes_on() -> None:
    cluster = FakeCluster(a_training_job())
    cluster.leftovers = ("Job demo-a1", "Pod demo-a1-0-x")
    await settle(cluster)
    assert cluster.worker_jobs == []
    assert cluster.status.phase is Phase.PENDING
    assert "an earlier job of this name left: Job demo-a1, Pod demo-a1-0-x" in cluster.status.message
    cluster.leftovers = ()
    await settle(cluster)
    assert cluster.worker_jobs == ["demo-a1"]


async def test_children_that_still_belong_to_a_deleted_namesake_are_tried_again_soon() -> None:
    class Owned(FakeCluster):
        is_owned = True

        async def apply(self, manifest: Manifest) -> None:
            if self.is_owned:
                raise RefusedError(Refusal(Cause.LEAVING, "ServiceAccount dstj-demo still belongs to an earlier job"))
            await super().apply(manifest)

    cluster = Owned(a_training_job())
    assert await a_pass(cluster) == SETTINGS.namesake_retry_s
    assert cluster.notices[-1].reason == "NamesakeLeaving"
    assert cluster.notices[-1].message == "ServiceAccount dstj-demo still belongs to an earlier job"
    cluster.is_owned = False
    await settle(cluster)
    assert cluster.worker_jobs == ["demo-a1"]


@pytest.mark.parametrize(
    ("cause", "told", "reason", "fix"),
    [
        (Cause.REFUSED, ": exceeded quota: storage", "QuotaExceeded", ""),
        (Cause.REFUSED, ": violates a policy", "Refused", ""),
        (Cause.CHANGE_REFUSED, ": only dynamically provisioned", "ClaimUnchangeable", "checkpoint.volume.claimName"),
        (Cause.TAKEN, " is somebody else's", "NameTaken", ""),
    ],
)
async def test_what_keeps_an_object_from_being_made_ends_in_the_status(
    cause: Cause, told: str, reason: str, fix: str
) -> None:
    class Strict(FakeCluster):
        async def apply(self, manifest: Manifest) -> None:
            if manifest["kind"] == "PersistentVolumeClaim":
                raise RefusedError(Refusal(cause, f"PersistentVolumeClaim dstj-demo{told}"))
            await super().apply(manifest)

    cluster = Strict(a_training_job())
    assert await a_pass(cluster) == SETTINGS.refused_retry_s
    assert cluster.worker_jobs == []
    assert cluster.status.message.startswith(f"PersistentVolumeClaim dstj-demo{told}")
    assert (cluster.notices[-1].reason, cluster.notices[-1].type) == (reason, "Warning")
    assert fix in cluster.status.message
    await a_pass(cluster, seconds=30)
    writes = len(cluster.log)
    await a_pass(cluster, seconds=60)
    assert {entry.split()[0] for entry in cluster.log[writes:]} == {"apply"}, "status and event are written once"


async def test_suspend_and_resume_make_the_next_attempt_and_no_restart() -> None:
    cluster = FakeCluster(a_training_job())
    await settle(cluster)
    cluster.start_pods()
    await settle(cluster)
    cluster.change_spec(suspend=True)
    await settle(cluster)
    assert (cluster.status.phase, cluster.worker_jobs) == (Phase.SUSPENDING, [])
    cluster.change_spec(suspend=False)
    await settle(cluster)
    assert cluster.worker_jobs == []  # pods of the first attempt still write their checkpoint
    cluster.collect()
    await settle(cluster)
    assert cluster.worker_jobs == ["demo-a2"]
    assert cluster.status.restarts.model_dump() == {"job": 0, "in_place": 0, "disruption": 0}


Life = Callable[[FakeCluster, Callable[[], Awaitable[None]]], Awaitable[None]]


async def live(life: Life, cluster: FakeCluster, retry: bool) -> None:
    """`life`, each stage as far as the cluster lets it; an operator that dies is followed by one that lives."""

    clock = itertools.count(0, 60)  # each stage is later than every pause of the one before

    async def progress() -> None:
        seconds = next(clock)
        try:
            await settle(cluster, seconds)
        except CrashError:
            assert retry
            cluster.survives = None
            await settle(cluster, seconds)

    await life(cluster, progress)


async def full_life(cluster: FakeCluster, progress: Callable[[], Awaitable[None]]) -> None:
    """Start, fail, restart, suspend, resume, succeed."""
    await progress()
    cluster.start_pods()
    await progress()
    cluster.finish(1, "Failed", exit_code=1)
    await progress()
    await progress()
    cluster.start_pods()
    await progress()
    cluster.change_spec(suspend=True)
    await progress()
    cluster.collect()
    await progress()
    cluster.change_spec(suspend=False)
    await progress()
    cluster.start_pods()
    await progress()
    cluster.finish(3, "Complete")
    await progress()


async def life_at_a_quota(cluster: FakeCluster, progress: Callable[[], Awaitable[None]]) -> None:
    """No room, room for half of the pods by mistake, given back, no room, room for all, success."""
    cluster.quotas = [NO_ROOM]
    await progress()
    assert (cluster.worker_jobs, cluster.status.phase) == ([], Phase.PENDING)
    cluster.quotas = []
    await progress()
    half_of_the_pods_are_refused(cluster)
    await progress()
    assert (cluster.worker_jobs, len(cluster.pods)) == ([], 1)
    cluster.warnings, cluster.quotas = (), [NO_ROOM]
    cluster.collect()
    await progress()
    assert cluster.worker_jobs == []
    cluster.quotas = []
    await progress()
    cluster.start_pods()
    await progress()
    cluster.finish(1, "Complete")
    await progress()


def half_of_the_pods_are_refused(cluster: FakeCluster) -> None:
    cluster.start_pods()
    del cluster.pods[1:]
    cluster.warnings = (a_warning("FailedCreate", "exceeded quota: team"),)


def _outcome(cluster: FakeCluster) -> dict[str, Any]:
    assert cluster.job is not None
    return {"job": cluster.job, "children": cluster.children, "pods": cluster.pods}


@pytest.mark.parametrize(("life", "attempts"), [(full_life, 3), (life_at_a_quota, 1)])
async def test_a_crash_after_any_write_leads_to_the_same_end(life: Life, attempts: int) -> None:
    undisturbed = FakeCluster(a_training_job())
    await live(life, undisturbed, retry=False)
    assert undisturbed.status.phase is Phase.SUCCEEDED
    assert undisturbed.status.attempt == attempts
    for survives in range(len(undisturbed.log)):
        cluster = FakeCluster(a_training_job(), survives=survives)
        await live(life, cluster, retry=True)
        assert _outcome(cluster) == _outcome(undisturbed), (
            f"crash after {undisturbed.log[survives]!r}, write {survives}"
        )


def somebody_deletes_the_worker_jobs(cluster: FakeCluster) -> None:
    for name in cluster.worker_jobs:
        del cluster.children["Job", name]


def the_newest_ends(exit_code: int) -> Callable[[FakeCluster], None]:
    def ends(cluster: FakeCluster) -> None:
        for name in cluster.worker_jobs[-1:]:
            cluster.finish(int(name.removeprefix("demo-a")), "Failed" if exit_code else "Complete", exit_code)

    return ends


def the_newest_is_rejected(cluster: FakeCluster) -> None:
    for name in cluster.worker_jobs[-1:]:
        attempt = int(name.removeprefix("demo-a"))
        cluster.finish(attempt, "Failed")
        rejected = {"phase": "Failed", "reason": "UnexpectedAdmissionError"}
        cluster.pods = [pod | {"status": rejected} if attempt_of(pod) == attempt else pod for pod in cluster.pods]


def a_pod_never_gets_a_machine(cluster: FakeCluster) -> None:
    for pod in cluster.pods[-1:]:
        if pod["status"]["phase"] == "Running":
            pod |= {"spec": {}, "status": {"phase": "Pending"}}
            pod["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"


def the_quota_is_full(cluster: FakeCluster) -> None:
    cluster.quotas = [NO_ROOM]


def the_quota_is_free(cluster: FakeCluster) -> None:
    cluster.quotas, cluster.warnings = [], ()


HAPPENINGS: tuple[Callable[[FakeCluster], None], ...] = (
    FakeCluster.collect,
    somebody_deletes_the_worker_jobs,
    half_of_the_pods_are_refused,
    the_newest_is_rejected,
    a_pod_never_gets_a_machine,
    the_quota_is_full,
    the_quota_is_free,
    lambda cluster: cluster.change_spec(suspend=True),
    lambda cluster: cluster.change_spec(suspend=False),
    *(the_newest_ends(exit_code) for exit_code in (0, 1, 64, 75, 143)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(HAPPENINGS), st.none() | st.integers(0, 4)), min_size=8, max_size=20))
def test_whatever_happens_the_promises_of_the_status_hold(
    happenings: list[tuple[Callable[[FakeCluster], None], int | None]],
) -> None:
    asyncio.run(any_life(happenings))


async def any_life(happenings: list[tuple[Callable[[FakeCluster], None], int | None]]) -> None:
    """After each happening two passes, the first of which dies after so many writes; then peace."""
    cluster = FakeCluster(a_training_job({"runPolicy": {"maxRestarts": 2, "maxDisruptions": 3}}))
    before = cluster.status
    for seconds, (happening, survives) in zip(itertools.count(0, 15), happenings, strict=False):
        cluster.start_pods()
        happening(cluster)
        cluster.survives = survives
        with contextlib.suppress(CrashError):
            await a_pass(cluster, seconds)
        cluster.survives = None
        await a_pass(cluster, seconds)
        promises_hold(before, cluster, NOW + timedelta(seconds=seconds))
        before = cluster.status
    the_quota_is_free(cluster)
    await settle(cluster, 3600)


def promises_hold(before: JobStatus, cluster: FakeCluster, now: datetime) -> None:
    status, restarts = cluster.status, cluster.status.restarts
    assert status.attempt >= before.attempt, "attempts only rise"
    assert not before.is_finished or status.phase == before.phase, "the end is the end"
    assert restarts.job <= 2, "restarts stay within their budget"
    assert restarts.job + restarts.disruption <= status.attempt, "each restart is an attempt"
    assert restarts.disruption <= 3, "disruptions stay within their budget"
    assert len(status.attempts) <= 10
    assert [each.attempt for each in status.attempts] == sorted({each.attempt for each in status.attempts})
    if status.next_attempt_time and status.next_attempt_time > now:
        assert f"demo-a{status.attempt}" not in cluster.worker_jobs, "no try begins before its time"
    working = [pod for pod in cluster.pods if pod["status"]["phase"] in {"Pending", "Running"}]
    assert len({attempt_of(pod) for pod in working}) <= 1, "no two attempts can write the volume"
    assert not (status.is_true("Suspended") and working), "suspended means no pods"
