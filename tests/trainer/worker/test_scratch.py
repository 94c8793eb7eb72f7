import os
from pathlib import Path

import pytest

from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.worker.failure import Failure
from deepseek_trainer.worker.scratch import Scratch


@pytest.fixture
def scratch(tmp_path: Path) -> Scratch:
    return Scratch(tmp_path / "scratch")


def test_ranks_are_known_by_their_pids_and_by_how_often_they_were_restarted(scratch: Scratch):
    scratch.begin_round()
    assert scratch.pids() == ()
    assert [scratch.record(0), scratch.record(0), scratch.record(1)] == [0, 1, 0]
    assert scratch.pids() == (os.getpid(), os.getpid())


def test_a_pid_that_is_being_written_is_not_read(scratch: Scratch):
    scratch.record(0)
    (scratch.directory / "ranks" / "1").touch()
    assert scratch.pids() == (os.getpid(),)


def test_a_round_begins_without_the_last_ones_ranks_words_and_failure(scratch: Scratch):
    scratch.record(0)
    scratch.leave_progress(b'{"step": 11}')
    Failure(ExitCode.TRY_AGAIN, "Adapting", "too big", 0).save(scratch.failure)
    scratch.begin_round()
    assert scratch.pids() == ()
    assert Failure.load(scratch.failure) is None
    assert scratch.last_progress() == {}
    assert scratch.record(0) == 1, "restarts are counted over all rounds"


@pytest.mark.parametrize(
    "failure",
    [
        Failure(ExitCode.INTEGRITY, "Integrity", "bad tag", 0),
        Failure(ExitCode.TRY_AGAIN, "Storage", "disk full", 0),
        Failure(ExitCode.TRY_AGAIN, "OutOfMemory", "too big", 0),
    ],
)
def test_a_round_keeps_a_failure_that_ends_the_worker(scratch: Scratch, failure: Failure):
    failure.save(scratch.failure)
    scratch.leave_progress(b'{"step": 11}')
    scratch.begin_round()
    assert Failure.load(scratch.failure) == failure
    assert scratch.last_progress() == {"step": 11}


def test_what_was_climbed_outlives_rounds_and_never_falls_but_with_a_new_worker(scratch: Scratch):
    scratch.begin_round()
    assert scratch.rungs == 0
    scratch.climb_to(2)
    scratch.begin_round()
    scratch.climb_to(1)
    assert scratch.rungs == 2
    scratch.clear()
    assert scratch.rungs == 0


def test_words_that_were_cut_short_are_none(scratch: Scratch):
    scratch.directory.mkdir()
    scratch.leave_progress(b'{"step": 1')
    assert scratch.last_progress() == {}


def test_a_round_after_an_agreed_stop_keeps_it_and_the_last_words(scratch: Scratch):
    scratch.directory.mkdir()
    scratch.leave_progress(b'{"step": 11}')
    scratch.stopped.touch()
    scratch.begin_round()
    assert scratch.stopped.exists()
    assert scratch.last_progress() == {"step": 11}


def test_no_round_has_begun_before_the_first_and_after_clearing(scratch: Scratch):
    assert not scratch.has_begun
    scratch.begin_round()
    assert scratch.has_begun
    scratch.clear()
    assert not scratch.has_begun


def test_each_rank_leaves_its_profile_in_a_file_of_its_own(scratch: Scratch):
    assert {path.relative_to(scratch.directory).name for path in map(scratch.trace, (0, 1))} == {
        "profile-rank-0.json.gz",
        "profile-rank-1.json.gz",
    }
