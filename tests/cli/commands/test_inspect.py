"""`dstj status` and `dstj logs`: local jobs as they stand."""

import pytest
import yaml

from dstj.local.store import store
from support.builders.cli import a_job, job_file, job_home

STATUS = {
    "phase": "Running",
    "message": "all 2 pods are ready",
    "attempt": 2,
    "restarts": {"job": 1},
    "trainerStatus": {"step": 3, "maxSteps": 9, "metrics": [{"name": "loss", "value": "2.5"}]},
    "lastCheckpoint": {"step": 2, "sizeBytes": 1 << 20, "sealed": False},
}


@pytest.fixture
def job(place):
    """A job with logs of two attempts."""
    home = job_home()
    store(home, a_job() | {"status": STATUS})
    for attempt, node, container in ((1, 0, "trainer"), (2, 0, "prepare"), (2, 0, "trainer"), (2, 1, "trainer")):
        log = home.logs / f"tiny-a{attempt}-{node}/{container}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(f"attempt {attempt}\nhalf a line")
    return home


def test_status_without_jobs_says_how_to_make_one(run_dstj, place, capsys):
    assert run_dstj("status") == 0
    here, there = capsys.readouterr().out.split("; dstj status ")
    assert here == f"no jobs in {place}/.dstj; dstj run FILE makes one"
    assert there == "-n NAMESPACE lists a cluster's\n"


def test_status_lists_every_job(run_dstj, job, capsys):
    with job.locked():
        assert run_dstj("status") == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row == [
        "tiny",
        "Running",
        "3/9",
        "2.5",
        "2",
        "1",
        "after",
        "failures",
        "step",
        "2",
        "(1.0",
        "MiB,",
        "in",
        "the",
        "clear)",
    ]


def test_status_shows_that_the_run_was_killed(run_dstj, job, capsys):
    assert run_dstj("status") == 0
    assert "Running (killed)" in capsys.readouterr().out
    assert run_dstj("status", "tiny") == 0
    assert "its `dstj run` was killed: the same command goes on" in capsys.readouterr().out


def test_status_of_one_job_shows_progress_and_where_the_logs_are(run_dstj, job, capsys):
    assert run_dstj("status", "tiny") == 0
    shown = capsys.readouterr().out
    assert "progress      step 3/9, loss 2.5" in shown
    assert "dstj logs tiny" in shown


def test_status_as_yaml_is_the_whole_object(run_dstj, job, capsys):
    assert run_dstj("status", "tiny", "-o", "yaml") == 0
    assert yaml.safe_load(capsys.readouterr().out) == a_job() | {"status": STATUS}


@pytest.mark.parametrize("command", ["status", "logs"])
def test_unknown_job_names_those_that_there_are(run_dstj, job, capsys, command):
    assert run_dstj(command, "tyni") == 64
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("dstj: error: no local job 'tyni' in ")
    assert "jobs there: tiny" in hint


def test_logs_print_the_newest_attempt_with_the_node_in_front(run_dstj, job, capsys):
    assert run_dstj("logs", "tiny") == 0
    assert capsys.readouterr().out.splitlines() == [
        "[0 prepare] attempt 2",
        "[0 prepare] half a line",
        "[0 trainer] attempt 2",
        "[0 trainer] half a line",
        "[1 trainer] attempt 2",
        "[1 trainer] half a line",
    ]


@pytest.mark.parametrize(
    ("options", "first"),
    [
        (["--attempt", "1"], "[0 trainer] attempt 1"),
        (["--node", "1"], "[1 trainer] attempt 2"),
        (["--container", "trainer"], "[0 trainer] attempt 2"),
    ],
)
def test_logs_are_chosen_by_attempt_node_and_container(run_dstj, job, capsys, options, first):
    assert run_dstj("logs", "tiny", *options) == 0
    assert capsys.readouterr().out.splitlines()[0] == first


@pytest.mark.parametrize("options", [["--attempt", "7"], ["--node", "5"]])
def test_logs_that_there_are_not_name_those_that_there_are(run_dstj, job, capsys, options):
    assert run_dstj("logs", "tiny", *options) == 64
    assert "attempts with logs: 1, 2" in capsys.readouterr().err


def test_logs_follow_until_nobody_runs_the_job(run_dstj, place, capsys):
    """The worker itself follows its own log: what it prints while it runs must come out."""
    program = f"""
import subprocess, sys
print("one", flush=True)
follow = subprocess.Popen([{__import__("sys").executable!r}, "-m", "dstj.cli", "logs", "tiny", "-f"],
                          cwd={str(place)!r}, stdout=subprocess.PIPE, text=True)
first = follow.stdout.readline()
print("saw", first.strip(), flush=True)
second = follow.stdout.readline()
print("saw", second.strip(), flush=True)
follow.kill()
"""
    assert run_dstj("run", job_file(place), worker=program) == 0
    assert (job_home().logs / "tiny-a1-0/trainer.log").read_text().splitlines() == [
        "one",
        "saw [0 trainer] one",
        "saw [0 trainer] saw [0 trainer] one",
    ]
