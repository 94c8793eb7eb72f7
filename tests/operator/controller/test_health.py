"""When the kubelet should restart the operator."""

from deepseek_operator.controller.health import Health
from deepseek_operator.objects.observed import OwnerKey
from support.fakes.clock import FakeTime

A, B = OwnerKey("ml", "a"), OwnerKey("ml", "b")


def a_health(time: FakeTime, oldest_s: float = 0) -> Health:
    return Health(time.clock, lambda: oldest_s, tick_s=60)


def test_an_operator_that_hears_everything_is_healthy() -> None:
    health = a_health(FakeTime())
    for version in ("1", "2", "3", "4", "5"):
        health.heard(A, version)
        assert health.listed({A: version}) == ()
    assert health.problems() == ()


def test_what_no_event_reported_is_found_by_the_second_list() -> None:
    health = a_health(FakeTime())
    health.heard(A, "1")
    assert health.listed({A: "1", B: "7"}) == ()
    assert health.listed({A: "1", B: "7"}) == (B,)


def test_an_event_that_comes_between_two_lists_is_in_time() -> None:
    health = a_health(FakeTime())
    assert health.listed({A: "2"}) == ()
    health.heard(A, "2")
    assert health.listed({A: "2"}) == ()


def test_deafness_is_a_reason_to_restart_and_hearing_again_ends_it() -> None:
    health = a_health(FakeTime())
    for _ in range(4):
        health.listed({A: "1"})
    assert "no watch event" in health.problems()[0]
    health.heard(A, "1")
    health.listed({A: "1"})
    assert health.problems() == ()


def test_a_job_that_is_gone_is_forgotten() -> None:
    health = a_health(FakeTime())
    for versions in ({A: "1"}, {A: "1"}, {}, {}, {}):
        health.listed(versions)
    assert health.problems() == ()


async def test_a_loop_that_stopped_is_a_reason_to_restart() -> None:
    time = FakeTime()
    health = a_health(time)
    assert health.problems() == ()
    health.ticked()
    await time.advance(179)
    assert health.problems() == ()
    await time.advance(2)
    assert health.problems() == ("no list was tried for 181 s",)


def test_a_stuck_pass_is_a_reason_to_restart() -> None:
    assert a_health(FakeTime(), oldest_s=301).problems() == ("a pass has been due for 301 s",)
