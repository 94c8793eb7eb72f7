"""Deleted jobs that somebody's finalizers keep."""

import pytest

from deepseek_operator.controller.reconcile import reconcile
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.status import Phase
from deepseek_operator.objects.observed import OwnerKey
from support.builders.operator import NOW, SETTINGS, FakeCluster, a_training_job

KEY = OwnerKey("ml", "demo")
WHEN = "2026-01-02T03:04:05Z"


async def a_pass(cluster: FakeCluster) -> float | None:
    return await reconcile(JOBS, KEY, cluster, SETTINGS, NOW)


async def a_running_job() -> FakeCluster:
    cluster = FakeCluster(a_training_job())
    await a_pass(cluster)
    cluster.start_pods()
    await a_pass(cluster)
    assert cluster.status.phase is Phase.RUNNING
    return cluster


def deleted(cluster: FakeCluster, *finalizers: str) -> None:
    assert cluster.job is not None
    cluster.job["metadata"] |= {"deletionTimestamp": WHEN, "finalizers": list(finalizers)}


async def test_the_pods_of_a_deleted_job_are_stopped_although_a_finalizer_keeps_it() -> None:
    cluster = await a_running_job()
    deleted(cluster, "audit.example.com/keep")
    await a_pass(cluster)
    assert (cluster.worker_jobs, cluster.status.phase) == ([], Phase.SUSPENDING)
    assert cluster.notices[-1].reason == "BeingDeleted"
    assert "metadata.finalizers has audit.example.com/keep" in cluster.status.message
    cluster.collect()
    await a_pass(cluster)
    assert cluster.status.phase is Phase.SUSPENDED
    writes = len(cluster.log)
    assert await a_pass(cluster) is None
    assert len(cluster.log) == writes, "a job that is kept for long costs no write"


async def test_nothing_is_made_for_a_deleted_job() -> None:
    cluster = FakeCluster(a_training_job())
    deleted(cluster, "audit.example.com/keep")
    await a_pass(cluster)
    assert [entry for entry in cluster.log if entry.startswith("apply")] == []


async def test_a_deleted_job_whose_spec_breaks_a_rule_is_stopped_too() -> None:
    cluster = await a_running_job()
    cluster.change_spec(optimization={"globalBatchSize": 7})
    deleted(cluster, "audit.example.com/keep")
    await a_pass(cluster)
    assert cluster.worker_jobs == []


@pytest.mark.parametrize("finalizer", ["foregroundDeletion", "orphan"])
async def test_what_kubernetes_itself_deletes_or_releases_is_left_to_it(finalizer: str) -> None:
    cluster = await a_running_job()
    writes = len(cluster.log)
    deleted(cluster, finalizer)
    assert await a_pass(cluster) is None
    assert len(cluster.log) == writes
