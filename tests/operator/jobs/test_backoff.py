"""The pauses between attempts, by a clock."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_operator.jobs.backoff import doubling, paused, ran_well
from deepseek_operator.jobs.decide import decide
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import AttemptStatus, JobStatus, LastCheckpoint, Phase, Restarts
from deepseek_operator.objects.plan import Plan
from support.builders.operator import NOW, SETTINGS, a_job, a_pod, a_worker_job, terminated

EVICTED = ({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"},)
MADE = NOW - timedelta(minutes=1)


def later(seconds: float) -> Any:
    return NOW + timedelta(seconds=seconds)


def running(attempt: int = 1, *, since: float = 0, **fields: Any) -> JobStatus:
    """The status of a job all of whose pods run since `since` seconds after NOW."""
    record = AttemptStatus(attempt=attempt, start_time=MADE, running_time=later(since))
    return JobStatus(phase=Phase.RUNNING, attempt=attempt, start_time=NOW, attempts=(record,), **fields)


def broken(attempt: int = 1, **pod: Any) -> Observed:
    """All pods of the attempt failed."""
    pods = tuple(a_pod(i, "Failed", attempt=attempt, **terminated(1), **pod) for i in range(2))
    return Observed(worker_jobs=(a_worker_job(attempt, conditions=("Failed",)),), pods=pods, isolated=True)


def a_pass(status: JobStatus, observed: Observed, at: float, **spec: Any) -> Plan[JobStatus]:
    return decide(a_job(spec, status), observed, SETTINGS, later(at))


def pause_of(status: JobStatus, at: float) -> float:
    assert status.next_attempt_time is not None
    return (status.next_attempt_time - later(at)).total_seconds()


@pytest.mark.parametrize("cause", [{}, {"conditions": EVICTED}], ids=["failure", "disruption"])
def test_pauses_double_from_ten_seconds_to_ten_minutes(cause: dict[str, Any]) -> None:
    status, pauses, now = running(), [], 5.0
    for attempt in range(1, 10):
        status = a_pass(status, broken(attempt, **cause), now, runPolicy={"maxRestarts": 99}).status
        pauses.append(pause_of(status, now))
        assert (status.phase, status.attempt) == (Phase.RESTARTING, attempt + 1)
        begun = AttemptStatus(attempt=attempt + 1, start_time=later(now), running_time=later(now))
        status = status.model_copy(update={"phase": Phase.RUNNING, "attempts": (*status.attempts, begun)})
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]


def test_the_pause_is_written_before_anything_is_made_and_outlives_a_restart_of_the_operator() -> None:
    failed = a_pass(running(), broken(), 5)
    assert (failed.apply, failed.look_again) == ((), 0.0)
    read_again = JobStatus.model_validate(failed.status.manifest())
    waiting = a_pass(read_again, broken(), 8)
    assert (waiting.apply, waiting.look_again) == ((), 7.0)
    assert waiting.status == failed.status, "waiting costs no write"
    assert a_pass(read_again, broken(), 15).apply[-1]["metadata"]["name"] == "demo-a2"


def test_people_see_when_the_next_attempt_begins_and_why() -> None:
    message = a_pass(running(), broken(), 5).status.message
    assert message == "attempt 2 begins at 2026-01-02T03:04:20Z: node 0 failed with exit code 1 (Error)"


@pytest.mark.parametrize(
    ("status", "is_reset"),
    [
        pytest.param(running(back_offs=5), False, id="a-minute"),
        pytest.param(running(since=-600, back_offs=5), True, id="ten-minutes"),
        pytest.param(running(back_offs=5, last_checkpoint=LastCheckpoint(step=9, time=NOW)), True, id="new-checkpoint"),
        pytest.param(
            running(back_offs=5, last_checkpoint=LastCheckpoint(step=9, time=MADE - timedelta(hours=1))),
            False,
            id="the-checkpoint-that-it-began-with",
        ),
    ],
)
def test_pauses_begin_anew_after_an_attempt_that_ran_well(status: JobStatus, is_reset: bool) -> None:
    after = a_pass(status, broken(), 0).status
    assert (pause_of(after, 0), after.back_offs) == ((10, 1) if is_reset else (320, 6))


def test_a_person_who_resumes_a_job_waits_for_nothing() -> None:
    held = JobStatus(phase=Phase.SUSPENDED, attempt=2, back_offs=6, next_attempt_time=later(500))
    resumed = a_pass(held, Observed(), 0)
    assert (resumed.status.next_attempt_time, resumed.status.back_offs) == (None, 0)
    assert a_pass(resumed.status, Observed(), 1).apply[-1]["kind"] == "Job"


def test_a_worker_job_that_somebody_keeps_deleting_is_made_ever_later() -> None:
    status = a_pass(running(), Observed(), 0).status
    assert (pause_of(status, 0), status.restarts) == (10, Restarts(disruption=1))
    again = status.model_copy(update={"phase": Phase.STARTING})
    assert pause_of(a_pass(again, Observed(), 60).status, 60) == 20


def test_disruptions_have_a_budget_too() -> None:
    used = running(restarts=Restarts(disruption=100))
    plan = a_pass(used, broken(conditions=EVICTED), 0)
    assert plan.status.phase is Phase.FAILED
    assert "all 100 restarts of runPolicy.maxDisruptions are used" in plan.status.message
    more = a_pass(used, broken(conditions=EVICTED), 0, runPolicy={"maxDisruptions": 101})
    assert more.status.phase is Phase.RESTARTING


def test_old_pods_are_stopped_during_the_pause_and_not_after_it() -> None:
    failed = a_pass(running(), broken(), 5)
    left = replace(broken(), pods=(*broken().pods[:1], a_pod(1)))
    assert [ref.name for ref in a_pass(failed.status, left, 6).delete] == ["demo-a1"]


@given(st.lists(st.tuples(st.floats(0, 5000), st.booleans()), max_size=30))
def test_a_pause_is_never_shorter_than_the_one_before_unless_an_attempt_ran_well(
    lives: list[tuple[float, bool]],
) -> None:
    status, now, before = JobStatus(attempt=1), NOW, 0.0
    for attempt, (seconds, has_run) in enumerate(lives, 1):
        record = AttemptStatus(attempt=attempt, start_time=now, running_time=now if has_run else None)
        status = status.model_copy(update={"attempt": attempt, "attempts": (record,)})
        now += timedelta(seconds=seconds)
        well = ran_well(status, now)
        status = paused(status, SETTINGS, now)
        assert status.next_attempt_time is not None
        pause = (status.next_attempt_time - now).total_seconds()
        assert 10 <= pause <= 600
        assert pause == 10 if well else pause >= before
        before, now = pause, status.next_attempt_time


def test_doubling_ends_at_the_longest_however_often() -> None:
    assert [doubling(10, 600, times) for times in (0, 1, 6, 10**9)] == [10, 20, 600, 600]
