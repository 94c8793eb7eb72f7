"""Errors that end pass after pass are told once, where people look, and taken back when a pass succeeds."""

import asyncio
from typing import Any

import pytest

from deepseek_operator.controller import metrics, service
from deepseek_operator.controller.client import Api, ApiError, NamespaceLeavingError
from deepseek_operator.controller.failures import MAX_ERROR, REPORTED_AFTER, Failures
from deepseek_operator.controller.reconcile import reconcile, report_failure
from deepseek_operator.controller.service import Operator, Options
from deepseek_operator.jobs.kind import JOBS
from deepseek_operator.jobs.status import JobStatus, Phase
from deepseek_operator.objects.observed import Manifest, OwnerKey
from deepseek_operator.settings import Settings
from support.builders.operator import NOW, SETTINGS, FakeCluster, a_training_job

KEY = OwnerKey("ml", "demo")
WEBHOOK = ApiError(500, 'Internal error occurred: failed calling webhook "mjob.kb.io"')
OPTIONS = Options((), leader_elect=False, identity="a", port=0, settings=Settings())


class Told(list[str]):
    async def __call__(self, _: OwnerKey, error: str) -> None:
        self.append(error)


async def test_only_errors_that_last_are_told_and_only_once() -> None:
    told = Told()
    failures = Failures(told)
    for number in range(1, REPORTED_AFTER + 5):
        await failures.failed(KEY, ApiError(500, f"request {number}"))
        assert len(told) == (number >= REPORTED_AFTER)
    assert told == [f"ApiError: 500: request {REPORTED_AFTER}"]
    failures.ended(KEY)
    await failures.failed(KEY, WEBHOOK)
    assert len(told) == 1
    for _ in range(REPORTED_AFTER):
        await failures.failed(KEY, WEBHOOK)
    assert len(told) == 2


async def test_an_error_is_told_on_one_line_and_bounded() -> None:
    told = Told()
    failures = Failures(told)
    for _ in range(REPORTED_AFTER):
        await failures.failed(KEY, ValueError("a\n" * 10_000))
    assert told[0].startswith("ValueError: a a a")
    assert len(told[0]) == MAX_ERROR


async def test_what_could_not_be_told_is_told_after_the_next_failure() -> None:
    away = [ConnectionError("away")]
    told = Told()

    async def tell(key: OwnerKey, error: str) -> None:
        if away:
            raise away.pop()
        await told(key, error)

    failures = Failures(tell)
    for _ in range(REPORTED_AFTER + 1):
        await failures.failed(KEY, WEBHOOK)
    assert len(told) == 1


class Hindered(FakeCluster):
    """A webhook that is down answers for the API server where a kind of object is made."""

    error: Exception | None = WEBHOOK

    async def apply(self, manifest: Manifest) -> None:
        if manifest["kind"] == "Job" and self.error:
            raise self.error
        await super().apply(manifest)

    def written(self, _: OwnerKey) -> str:
        return ""

    def pause_s(self, _: OwnerKey) -> float:
        return 0.0


async def pass_over(operator: Operator) -> Any:
    try:
        return await operator._pass(KEY)
    except ApiError as error:
        return error


def an_operator(api: Api, cluster: Hindered) -> Operator:
    return Operator(JOBS, OPTIONS, api, cluster)  # type: ignore[arg-type]


async def test_a_webhook_that_is_down_is_named_in_the_status_and_by_one_event_until_it_is_back(api: Api) -> None:
    cluster = Hindered(a_training_job())
    operator = an_operator(api, cluster)
    for _ in range(REPORTED_AFTER + 3):
        assert await pass_over(operator) is WEBHOOK
    assert 'failed calling webhook "mjob.kb.io"' in cluster.status.message
    assert [(notice.reason, notice.type) for notice in cluster.notices] == [("PassFailed", "Warning")]
    assert (cluster.status.phase, cluster.status.attempt) == (Phase.PENDING, 0)
    cluster.error = None
    for _ in range(2):
        await pass_over(operator)
    assert "webhook" not in cluster.status.message
    assert cluster.notices[-1].reason == "PodsStarting"
    assert all(condition.reason != "PassFailed" for condition in cluster.status.conditions)


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.RESTARTING, Phase.QUEUED, Phase.SUSPENDED])
async def test_a_failure_changes_nothing_but_what_is_told(phase: Phase) -> None:
    cluster = FakeCluster(a_training_job(status=JobStatus(phase=phase, attempt=3)))
    await report_failure(JOBS, KEY, cluster, "TimeoutError", NOW)
    assert (cluster.status.phase, cluster.status.attempt) == (phase, 3)
    assert cluster.status.message.endswith("TimeoutError")


async def test_a_finished_job_keeps_its_last_word() -> None:
    cluster = FakeCluster(a_training_job())
    for _ in range(2):
        await reconcile(JOBS, KEY, cluster, SETTINGS, NOW)
    cluster.finish(1, "Complete")
    await reconcile(JOBS, KEY, cluster, SETTINGS, NOW)
    writes = len(cluster.log)
    await report_failure(JOBS, KEY, cluster, "TimeoutError", NOW)
    assert cluster.status.phase is Phase.SUCCEEDED
    assert len(cluster.log) == writes


async def test_a_namespace_that_is_being_deleted_costs_one_try_and_a_quiet_wait(api: Api) -> None:
    cluster = Hindered(a_training_job())
    cluster.error = NamespaceLeavingError(403, "it is being terminated")
    operator = an_operator(api, cluster)
    for _ in range(REPORTED_AFTER + 1):
        assert await pass_over(operator) == Settings().resync_s
    assert cluster.notices == []
    assert cluster.status.message == ""


async def test_a_replica_without_election_leads(api: Api) -> None:
    async with service._leading(OPTIONS, api, asyncio.Event()):
        assert metrics.LEADER._value.get() == 1
    assert metrics.LEADER._value.get() == 0
