import json
import signal
import subprocess
import sys
from pathlib import Path

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.failure import Failure


def test_an_error_of_ours_keeps_its_code_its_line_and_its_hint():
    failure = Failure.of(DataError("train.jsonl:3 has no field 'text'", hint="set data.textField"), rank=1)
    assert failure == Failure(ExitCode.DATA, "Data", "train.jsonl:3 has no field 'text' (hint: set data.textField)", 1)


def test_an_unforeseen_error_tells_the_end_of_its_traceback():
    try:
        raise KeyError("gone")
    except KeyError as error:
        failure = Failure.of(error)
    assert (failure.exit_code, failure.reason) == (ExitCode.INTERNAL, "KeyError")
    assert failure.message.endswith("KeyError: 'gone'")


def test_a_killed_process_is_worth_another_try_and_names_memory():
    failure = Failure.of_exit(-signal.SIGKILL, rank=3)
    assert failure.exit_code == ExitCode.TRY_AGAIN
    assert "memory" in failure.message


def test_a_failure_survives_the_file_that_the_launcher_reads(tmp_path: Path):
    failure = Failure(65, "Data", "empty", 0)
    failure.save(tmp_path / "new" / "failure.json")
    assert Failure.load(tmp_path / "new" / "failure.json") == failure
    assert Failure.load(tmp_path / "missing.json") is None


def test_the_termination_message_is_what_the_operator_reads():
    message = json.loads(Failure(77, "Integrity", "bad tag", 2).to_json())
    assert message == {"rank": 2, "exitCode": 77, "reason": "Integrity", "message": "bad tag"}


def test_an_entry_point_that_fails_ends_with_its_code_and_leaves_its_message(tmp_path: Path):
    code = (
        "from deepseek_trainer.failure import run\n"
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
