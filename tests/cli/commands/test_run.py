"""`dstj run` from end to end: the operator's own decisions over real processes that stand in for the trainer."""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from deepseek_trainer.contract.names import ENV_ROOT
from dstj.local import strays
from support.builders.cli import WORKER, job_file, job_home, job_status

# Fails once, and works when tried again.
KILLED_ONCE = "import os; os.environ['DSTJ_RUN_ID'].endswith('-1') and os.kill(os.getpid(), 9)"
TELLS = """
import json, os, sys
failure = {"rank": 0, "exitCode": 65, "reason": "Data", "message": "train.jsonl:3: no field 'text'"}
open(os.environ["DSTJ_TERMINATION_LOG"], "w").write(json.dumps(failure))
sys.exit(65)
"""
# Sends Ctrl-C to dstj, and answers SIGTERM with a checkpoint.
STOPS = """
import os, signal, sys
def save(*_):
    open(os.environ["DSTJ_ROOT"] + "/work/saved", "w")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
os.kill(os.getppid(), signal.{signal})
signal.pause()
"""
# Answers SIGTERM with another Ctrl-C, and never leaves by itself.
STUBBORN = """
import os, signal
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getppid(), signal.SIGINT))
os.kill(os.getppid(), signal.SIGINT)
while True: signal.pause()
"""
# Sends Ctrl-C to dstj once, and hears no SIGTERM: a rank that hangs in a call of the kernel does not, either.
DEAF = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.kill(os.getppid(), signal.SIGINT)
while True: signal.pause()
"""


def test_run_ends_with_0_and_prints_where_the_result_is(run_dstj, place, capsys):
    assert run_dstj("run", job_file(place, trainer__numNodes=2)) == 0
    assert f"result        {place}/.dstj/tiny/work/export/tiny" in capsys.readouterr().out
    assert job_status()["phase"] == "Succeeded"
    assert job_status()["replicaStatuses"]["nodes"]["succeeded"] == 2


def test_run_gives_the_trainer_its_config_and_volumes_at_the_paths_of_a_pod(run_dstj, place):
    (place / "corpus").mkdir()
    (place / "corpus/a.txt").write_text("hello")
    program = """
import json, os
root = os.environ["DSTJ_ROOT"]
assert json.load(open(root + "/etc/dstj/config.json"))["job"]["name"] == "tiny"
assert open(root + "/volumes/corpus/a.txt").read() == "hello"
assert os.path.isdir(root + "/work")
assert os.getcwd() == os.environ["DSTJ_SCRATCH"]
"""
    assert run_dstj("run", job_file(place), worker=program) == 0
    assert not (job_home().directory / "tmp/tiny-a1-0").exists()


def test_run_starts_every_node_with_an_address_and_ports_of_its_own(run_dstj, place):
    program = "import os, json; print(json.dumps(dict(os.environ)))"
    assert run_dstj("run", job_file(place, trainer__numNodes=2), worker=program) == 0
    first, second = (json.loads((job_home().logs / f"tiny-a1-{i}/trainer.log").read_text()) for i in (0, 1))
    assert (first["DSTJ_NODE_ADDRESS"], second["DSTJ_NODE_ADDRESS"]) == ("127.0.0.1", "127.0.0.2")
    assert (first["JOB_COMPLETION_INDEX"], second["JOB_COMPLETION_INDEX"]) == ("0", "1")
    assert first["DSTJ_RENDEZVOUS"] == second["DSTJ_RENDEZVOUS"]
    assert first["DSTJ_RUN_ID"] == second["DSTJ_RUN_ID"]
    assert first["DSTJ_METRICS_PORT"] != second["DSTJ_METRICS_PORT"]


@pytest.mark.parametrize(("worker", "code"), [(TELLS, 65), ("raise SystemExit(64)", 64), ("raise SystemExit(77)", 77)])
def test_run_gives_up_at_once_when_a_retry_cannot_help(run_dstj, place, capsys, worker, code):
    assert run_dstj("run", job_file(place), worker=worker) == code
    assert job_status()["attempt"] == 1
    error = capsys.readouterr().err
    assert error.startswith("dstj: error: tiny: node 0")
    assert f"whole log: {place}/.dstj/tiny/logs/tiny-a1-0/" in error


def test_run_reports_the_reason_that_the_worker_left(run_dstj, place, capsys):
    run_dstj("run", job_file(place), worker=TELLS)
    assert "no field 'text'" in capsys.readouterr().err
    failure = job_status()["lastFailure"]
    assert (failure["rank"], failure["node"], failure["reason"]) == (0, 0, "Data")


def test_run_shows_the_last_lines_of_a_worker_that_left_no_reason(run_dstj, place):
    run_dstj("run", job_file(place, runPolicy__maxRestarts=0), worker="raise ValueError('oh dear')")
    assert "ValueError: oh dear" in job_status()["lastFailure"]["message"]


def test_run_starts_a_new_attempt_after_a_kill(run_dstj, place):
    assert run_dstj("run", job_file(place), worker=KILLED_ONCE) == 0
    assert (job_status()["attempt"], job_status()["restarts"]["job"]) == (2, 1)
    assert job_status()["lastFailure"]["exitCode"] == 137


def test_run_stops_the_other_nodes_when_one_is_killed(run_dstj, place):
    program = """
import os, signal
if os.environ["DSTJ_RUN_ID"].endswith("-1"):
    os.environ["JOB_COMPLETION_INDEX"] == "1" and os.kill(os.getpid(), 9)
    signal.pause()
"""
    assert run_dstj("run", job_file(place, trainer__numNodes=2), worker=program) == 0
    assert (job_status()["attempt"], job_status()["lastFailure"]["node"]) == (2, 1)


def test_run_fails_when_the_restarts_are_used_up(run_dstj, place, capsys):
    file = job_file(place, runPolicy__maxRestarts=1)
    assert run_dstj("run", file, worker="raise SystemExit(75)") == 75
    assert job_status()["attempt"] == 2
    assert "maxRestarts" in capsys.readouterr().err


def test_run_fails_a_job_that_takes_longer_than_its_deadline(run_dstj, place, capsys):
    file = job_file(place, runPolicy__activeDeadlineSeconds=1)
    assert run_dstj("run", file, worker="import signal; signal.pause()") == 1
    assert "activeDeadlineSeconds is 1" in capsys.readouterr().err
    assert strays.members(ENV_ROOT, str(job_home().directory)) == []


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 143)])
def test_run_suspends_on_a_signal_and_the_same_command_resumes(run_dstj, place, capsys, number, code):
    file, volume = job_file(place), f"corpus={place}/corpus"
    assert run_dstj("run", file, "--volume", volume, worker=STOPS.format(signal=number)) == code
    assert f"to go on: dstj run {file} --volume {volume}\n" in capsys.readouterr().out
    assert job_status()["phase"] == "Suspended"
    assert (job_home().paths.work / "saved").exists()

    assert run_dstj("run", file) == 0
    assert (job_status()["phase"], job_status()["attempt"]) == ("Succeeded", 2)
    assert job_status()["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}


def test_one_ctrl_c_ends_a_run_within_seconds_whose_worker_hangs_before_it_has_trained(run_dstj, place, monkeypatch):
    monkeypatch.setattr("dstj.local.worker_job.NOTHING_TO_SAVE_S", 0.3)
    began = time.monotonic()
    assert run_dstj("run", job_file(place), worker=DEAF) == 130
    assert time.monotonic() - began < 10
    assert job_status()["phase"] == "Suspended"
    assert strays.members(ENV_ROOT, str(job_home().directory)) == []


def test_run_ends_at_once_on_a_second_ctrl_c(run_dstj, place):
    assert run_dstj("run", job_file(place), worker=STUBBORN) == 130
    assert job_status()["phase"] == "Suspended"


def test_run_leaves_nothing_behind_that_a_worker_started(run_dstj, place):
    child = "import os, signal; os.setsid(); signal.pause()"
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', {child!r}])"
    assert run_dstj("run", job_file(place), worker=program) == 0
    assert strays.members(ENV_ROOT, str(job_home().directory)) == []


def test_run_goes_on_after_dstj_itself_was_killed(run_dstj, place, monkeypatch, capsys):
    os.mkfifo(place / "started")
    worker = f"import os, signal; open({str(place / 'started')!r}, 'w').write(str(os.getpid())); signal.pause()"
    file = job_file(place)
    script = Path(__file__).parents[2] / "support" / "fakes" / "dstj_standin.py"
    first = subprocess.Popen([sys.executable, script, "run", file], env=os.environ | {WORKER: worker})
    worker_pid = int((place / "started").read_text())
    ended = os.pidfd_open(worker_pid)
    first.kill()
    first.wait()
    assert select.select([ended], [], [], 5)[0], "the worker outlives dstj"

    assert run_dstj("run", file) == 0
    assert "the last run was killed: going on" in capsys.readouterr().out
    assert (job_status()["attempt"], job_status()["restarts"]["disruption"]) == (2, 1)


def test_run_of_a_job_that_is_being_run_is_refused(run_dstj, place, capsys):
    file = job_file(place)
    with job_home().locked():
        assert run_dstj("run", file) == 75
    assert capsys.readouterr().err.splitlines() == [
        f"dstj: error: tiny: process {os.getpid()} runs this job already",
        "dstj: hint: dstj status tiny",
    ]


def test_run_of_a_finished_job_prints_the_result_and_how_to_start_over(run_dstj, place, capsys):
    file = job_file(place)
    run_dstj("run", file)
    capsys.readouterr()
    assert run_dstj("run", file, worker="raise SystemExit(1)") == 0
    assert f"dstj run {file} --recreate" in capsys.readouterr().out


def test_run_of_a_failed_job_reports_the_failure_again(run_dstj, place, capsys):
    file = job_file(place)
    run_dstj("run", file, worker=TELLS)
    first = capsys.readouterr().err.splitlines()[0]
    assert run_dstj("run", file) == 65
    error, hint = capsys.readouterr().err.splitlines()
    assert error == first
    assert f"dstj run {file} --recreate" in hint


def test_run_recreate_starts_over_and_keeps_the_work_volume(run_dstj, place):
    file = job_file(place)
    assert run_dstj("run", file, worker="raise SystemExit(64)") == 64
    (job_home().paths.work / "kept").touch()
    assert run_dstj("run", file, "--recreate") == 0
    assert job_status()["attempt"] == 1
    assert (job_home().paths.work / "kept").exists()


def test_run_recreate_drops_the_work_volume_where_the_job_says_so(run_dstj, place):
    file = job_file(place, checkpoint__volume__whenDeleted="Delete")
    run_dstj("run", file)
    (job_home().paths.work / "dropped").touch()
    assert run_dstj("run", file, "--recreate") == 0
    assert not (job_home().paths.work / "dropped").exists()


def test_run_refuses_a_changed_job_as_the_api_server_would(run_dstj, place, capsys):
    run_dstj("run", job_file(place))
    assert run_dstj("run", job_file(place, optimization__maxSteps=5)) == 64
    assert "spec.optimization changed since tiny was first run" in capsys.readouterr().err


def test_run_refuses_to_go_on_without_its_work_volume(run_dstj, place, capsys):
    file = job_file(place)
    run_dstj("run", file, worker=STOPS.format(signal="SIGINT"))
    (job_home().paths.work / "saved").unlink()
    job_home().paths.work.rmdir()
    assert run_dstj("run", file) == 64
    assert "is gone, and the checkpoints with it" in capsys.readouterr().err


def test_run_keeps_a_job_suspended_that_its_file_suspends(run_dstj, place):
    assert run_dstj("run", job_file(place, suspend=True), worker="raise SystemExit(1)") == 0
    assert job_status()["phase"] == "Suspended"
    assert job_status()["attempt"] == 0


def test_run_shows_the_progress_that_node_0_serves(run_dstj, place):
    program = """
import http.server, json, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"stage": "training", "step": 7, "maxSteps": 9, "loss": 1.5}).encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(os.environ["DSTJ_METRICS_PORT"])), Handler).handle_request()
"""
    assert run_dstj("run", job_file(place), worker=program) == 0
    assert job_status()["trainerStatus"]["step"] == 7
    assert {"name": "loss", "value": "1.5"} in job_status()["trainerStatus"]["metrics"]


def test_state_directory_is_private_and_not_committed(run_dstj, place):
    run_dstj("run", job_file(place))
    assert (place / ".dstj").stat().st_mode & 0o777 == 0o700
    assert (place / ".dstj/.gitignore").read_text() == "*\n"


def test_status_file_is_the_whole_object(run_dstj, place):
    run_dstj("run", job_file(place))
    written = yaml.safe_load(job_home().status_file.read_text())
    assert (written["kind"], written["metadata"]["generation"]) == ("DeepSeekTrainingJob", 1)
    assert written["spec"]["data"] == {"train": {"claimName": "corpus"}}
