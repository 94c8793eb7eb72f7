"""A save beside a training takes its time, and no longer than until somebody waits for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.checkpoints.pace import PIECE_BYTES, SHARE, SLOWEST, Pace


class Clock:
    """Time that passes only while somebody pauses."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


def seconds_of(pace: Pace, clock: Clock, size: int) -> float:
    start = clock()
    for _ in pace.through([bytes(size)], size):
        pass
    return clock() - start


@given(st.lists(st.binary(max_size=3 * 1024)))
def test_content_stays_as_it_is(pieces: list[bytes]) -> None:
    pace = Pace(pause=lambda _: None)
    assert b"".join(pace.through(pieces, 1)) == b"".join(pieces)


def test_large_tensors_are_written_in_parts() -> None:
    parts = list(Pace(pause=lambda _: None).through([bytes(5 * PIECE_BYTES // 2)], 1))
    assert [len(part) for part in parts] == [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES // 2]


def test_the_first_save_takes_a_tenth_of_a_core() -> None:
    clock = Clock()
    pace = Pace(clock, clock.pause)
    pace.begin()
    assert seconds_of(pace, clock, SLOWEST // 10) == pytest.approx(0.1, rel=0.01)


def test_a_save_ends_before_the_next_one() -> None:
    clock = Clock()
    pace = Pace(clock, clock.pause)
    pace.begin()
    clock.now += 0.5
    pace.begin()
    assert seconds_of(pace, clock, SLOWEST) == pytest.approx(SHARE * 0.5, rel=0.01)


def test_rare_saves_are_no_slower_than_the_first() -> None:
    clock = Clock()
    pace = Pace(clock, clock.pause)
    pace.begin()
    clock.now += 3600
    pace.begin()
    assert seconds_of(pace, clock, SLOWEST // 10) == pytest.approx(0.1, rel=0.01)


def test_who_waits_for_a_save_ends_its_pauses() -> None:
    clock = Clock()
    pace = Pace(clock, clock.pause)
    pace.begin()
    pace.hurry()
    assert seconds_of(pace, clock, SLOWEST) == 0
    pace.begin()
    assert seconds_of(pace, clock, PIECE_BYTES) > 0
