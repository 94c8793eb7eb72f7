"""What a worker, or whoever else writes there, can leave where `dstj` reads: nothing of it hangs a command."""

import json
import os

import pytest

from deepseek_trainer.contract.names import ExitCode
from dstj.cli import main
from support.builders.cli import job_file, job_home, job_status

FORGED = "\n[2026-01-31 12:00:00] INFO: sealed\x1b[2J\r\u202e\u2028"
# Ends with a failure, and leaves a FIFO, or a link to a device, in the place of the file that says why.
LEAVES = """
import os
place = os.environ["DSTJ_TERMINATION_LOG"]
{act}
raise SystemExit(64)
"""
SAYS = """
import json, os
failure = {{"rank": 0, "exitCode": 65, "reason": "Data", "message": {message!r}}}
open(os.environ["DSTJ_TERMINATION_LOG"], "w").write(json.dumps(failure))
print({message!r}, flush=True)
raise SystemExit(65)
"""
pytestmark = pytest.mark.timeout(20)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        ("os.mkfifo(place)", "is a FIFO"),
        ("os.symlink('/dev/zero', place)", "is a device"),
        ("os.mkdir(place)", "is a dir"),
    ],
)
def test_what_stands_in_the_place_of_a_workers_last_words_is_named(run_dstj, place, capsys, act, said):
    assert run_dstj("run", job_file(place), worker=LEAVES.format(act=act)) == ExitCode.CONFIG
    assert said in job_status()["message"]


def test_the_end_of_a_long_log_stands_in_for_the_reason_and_is_not_read_whole(run_dstj, place):
    worker = (
        "import sys; sys.stdout.truncate(1 << 40); sys.stdout.seek(0, 2); print('last words'); raise SystemExit(64)"
    )
    assert run_dstj("run", job_file(place), worker=worker) == ExitCode.CONFIG
    assert "last words" in job_status()["message"]


def test_what_a_worker_says_is_one_printable_line_in_the_status_and_on_the_terminal(run_dstj, place, capsys):
    assert run_dstj("run", job_file(place), worker=SAYS.format(message=f"bad {FORGED}")) == ExitCode.DATA
    assert job_status()["message"].isprintable()
    assert "INFO: sealed\\x1b[2J\\r" in job_status()["message"]
    for arguments in (["status", "tiny"], ["status"], ["logs", "tiny"], ["status", "-o", "yaml"]):
        assert main(arguments) == 0
    printed = capsys.readouterr()
    assert all(line.isprintable() for line in (printed.out + printed.err).split("\n"))
    assert not [line for line in printed.out.split("\n") if line.startswith("[2026")]


def a_finished_run(run_dstj, place):
    file = job_file(place)
    assert run_dstj("run", file) == 0
    return file


@pytest.mark.parametrize("name", ["work/logs/events.jsonl", "status.yaml"])
def test_a_fifo_in_a_jobs_directory_hangs_no_status(run_dstj, place, capsys, name):
    a_finished_run(run_dstj, place)
    file = job_home().directory / name
    file.parent.mkdir(exist_ok=True)
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    is_own = name == "status.yaml"
    assert main(["status", "tiny"]) == (ExitCode.INTEGRITY if is_own else ExitCode.DONE)
    assert ("is a FIFO" in capsys.readouterr().err) is is_own


def test_events_that_are_none_are_passed_over(run_dstj, place, capsys):
    a_finished_run(run_dstj, place)
    events = job_home().paths.logs / "events.jsonl"
    events.parent.mkdir(exist_ok=True)
    odd = [{"event": "evaluation", "loss": "x"}, {"event": "answers"}, {"event": "classification", "accuracy": []}, 3]
    events.write_text("".join(f"{json.dumps(each)}\n" for each in odd) + "[" * 100_000 + "}\n\x1b")
    assert main(["status", "tiny"]) == 0
    assert "held-out loss not finite before" in capsys.readouterr().out


def test_a_fifo_in_the_place_of_a_log_hangs_no_logs(run_dstj, place, capsys):
    a_finished_run(run_dstj, place)
    log = job_home().logs / "tiny-a1-0/trainer.log"
    log.unlink()
    os.mkfifo(log)
    assert main(["logs", "tiny"]) == ExitCode.CONFIG
    assert "trainer.log' is a FIFO" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["run", "validate", "plan", "render", "submit"])
def test_a_job_file_is_a_file(place, capsys, command):
    os.mkfifo(place / "job.yaml")
    assert main([command, "job.yaml"]) == ExitCode.CONFIG
    assert "job.yaml' is a FIFO" in capsys.readouterr().err


def test_a_job_file_is_bounded(place, capsys):
    with (place / "job.yaml").open("wb") as file:
        file.truncate(1 << 40)
    assert main(["validate", "job.yaml"]) == ExitCode.CONFIG
    assert "at most 16,777,216 are read" in capsys.readouterr().err
