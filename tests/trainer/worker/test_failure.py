import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import AdaptingError, DataError, PeerGoneError
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.worker.failure import MAX_MESSAGE, Failure, discreet
from deepseek_trainer.worker.process import StopRequested

DATA = Failure(ExitCode.DATA, "Data", "row 7 is not a row", 1)
ADAPTING = Failure.of(AdaptingError("out of memory"), 2)
PEER_GONE = Failure.of(PeerGoneError("another rank went away"), 0)
any_text = st.text(st.characters(), max_size=2 * MAX_MESSAGE)  # lone surrogates too: file names have them


def test_an_error_of_ours_keeps_its_code_its_line_and_its_hint():
    failure = Failure.of(DataError("train.jsonl:3 has no field 'text'", hint="set data.textField"), rank=1)
    assert failure == Failure(ExitCode.DATA, "Data", "train.jsonl:3 has no field 'text' (hint: set data.textField)", 1)


def test_an_unforeseen_error_reports_the_end_of_its_traceback():
    try:
        raise KeyError("gone")
    except KeyError as error:
        failure = Failure.of(error)
    assert (failure.exit_code, failure.reason) == (ExitCode.INTERNAL, "KeyError")
    assert failure.message.endswith("KeyError: 'gone'")


@pytest.mark.parametrize("error", [ValueError("door code 4711"), KeyError("door code 4711"), AssertionError(4711)])
def test_an_unforeseen_error_of_a_private_job_tells_its_kind_and_place_and_no_word(error: Exception):
    def broken() -> None:
        raise error

    for is_private in (True, False):
        with pytest.raises(Exception, match=r".*") as raised, discreet(is_private):
            broken()
        failure = Failure.of(raised.value)
        assert (failure.exit_code, failure.reason) == (ExitCode.INTERNAL, type(error).__name__)
        assert "broken" in failure.message
        assert ("4711" in failure.message) is not is_private


@pytest.mark.parametrize(
    "error", [DataError("train.jsonl:3 is bad"), FileNotFoundError(2, "gone", "x"), StopRequested(), MemoryError()]
)
def test_an_error_that_quotes_nothing_is_told_in_private_jobs_as_it_is(error: Exception):
    with pytest.raises(type(error)) as raised, discreet(is_private=True):
        raise error
    assert raised.value is error


def test_a_killed_process_is_worth_another_try_and_names_memory():
    failure = Failure.of_exit(-signal.SIGKILL, rank=3)
    assert failure.exit_code == ExitCode.TRY_AGAIN
    assert "memory" in failure.message


def test_a_failure_survives_the_file_that_the_launcher_reads(tmp_path: Path):
    failure = Failure(65, "Data", "empty", 0)
    failure.save(tmp_path / "new" / "failure.json")
    assert Failure.load(tmp_path / "new" / "failure.json") == failure
    assert Failure.load(tmp_path / "missing.json") is None


@pytest.mark.parametrize("order", list(permutations((DATA, ADAPTING, PEER_GONE))))
def test_what_no_restart_helps_is_kept_whoever_is_first(tmp_path: Path, order: tuple[Failure, ...]):
    for failure in order:
        failure.save(tmp_path / "failure.json")
    assert Failure.load(tmp_path / "failure.json") == DATA


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        pytest.param(DATA, Failure(70, "NotFinite", "loss is nan", 0), DATA, id="the-first-of-equals"),
        pytest.param(PEER_GONE, ADAPTING, ADAPTING, id="a-cause-over-a-lost-peer"),
        pytest.param(ADAPTING, PEER_GONE, ADAPTING, id="a-lost-peer-is-a-consequence"),
        pytest.param(ADAPTING, Failure(1, "KeyError", "a bug", 0), ADAPTING, id="the-first-of-causes"),
    ],
)
def test_of_two_failures_the_one_closer_to_the_cause_is_kept(
    tmp_path: Path, first: Failure, second: Failure, kept: Failure
):
    first.save(tmp_path / "failure.json")
    second.save(tmp_path / "failure.json")
    assert Failure.load(tmp_path / "failure.json") == kept


def test_ranks_that_fail_at_once_leave_the_cause(tmp_path: Path):
    peers = [Failure.of(PeerGoneError("another rank went away"), rank) for rank in range(20)]
    with ThreadPoolExecutor(21) as ranks:
        list(ranks.map(lambda failure: failure.save(tmp_path / "failure.json"), [*peers[:10], DATA, *peers[10:]]))
    assert Failure.load(tmp_path / "failure.json") == DATA
    assert sorted(file.name for file in tmp_path.iterdir()) == ["failure.json", "failure.lock"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE])
def test_storage_that_fails_is_worth_another_try_and_says_where_to_look(number: int):
    failure = Failure.of(OSError(number, os.strerror(number), "/work/checkpoints"))
    assert (failure.exit_code, failure.reason) == (ExitCode.TRY_AGAIN, "Storage")
    assert failure.message.endswith("(hint: see the volume and the node's kernel log)")


@pytest.mark.parametrize("error", [ConnectionRefusedError(errno.ECONNREFUSED, "refused"), OSError("no number")])
def test_other_errors_of_the_system_are_not_put_down_to_storage(error: OSError):
    failure = Failure.of(error)
    assert failure.reason == type(error).__name__
    assert "volume" not in failure.message


@given(kind=st.sampled_from([MemoryError, OSError, ValueError, DataError, KeyError]), text=any_text)
def test_every_exception_can_be_reported(kind: type[Exception], text: str):
    failure = Failure.of(kind(text), rank=1)
    assert failure.message or kind is DataError  # which always has a text of ours
    assert len(failure.message) <= MAX_MESSAGE + 100


@pytest.mark.parametrize(
    "text",
    [
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to ...",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    ],
)
def test_a_bare_error_of_torch_about_memory_is_reported_as_such_and_ends_the_worker(text: str):
    failure = Failure.of(RuntimeError(text), 1)
    assert (failure.exit_code, failure.reason, failure.ends_worker) == (ExitCode.TRY_AGAIN, "OutOfMemory", True)
    assert failure.message.startswith(text.partition("\n")[0])


def test_a_rung_that_is_climbed_does_not_end_the_worker():
    assert (ADAPTING.exit_code, ADAPTING.reason, ADAPTING.ends_worker) == (ExitCode.TRY_AGAIN, "Adapting", False)


def test_an_exception_without_text_can_be_reported():
    assert Failure.of(MemoryError()).message.startswith("out of memory (hint: lower optimization.microBatchSize")


def test_an_entry_point_that_fails_ends_with_its_code_and_leaves_its_message(tmp_path: Path):
    code = (
        "from deepseek_trainer.worker.failure import run\n"
        "from deepseek_trainer.contract.errors import ConfigError\n"
        "def main(): raise ConfigError('spec.x=1: too small', hint='use 2')\n"
        "run(main)\n"
    )
    log = tmp_path / "termination"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"DSTJ_TERMINATION_LOG": str(log)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == ExitCode.CONFIG
    assert done.stderr == "Config: spec.x=1: too small (hint: use 2)\n"
    assert json.loads(log.read_text())["exitCode"] == ExitCode.CONFIG
