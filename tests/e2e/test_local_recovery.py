"""Jobs through `dstj run` that are disturbed: they go on as if nothing had been, or say why they cannot."""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.contract.names import ExitCode
from support.builders.local_job import Job, longer, short


@pytest.mark.parametrize("node", [pytest.param(0, marks=pytest.mark.long), 1])
def test_a_killed_rank_is_restarted_and_the_losses_are_those_of_an_uninterrupted_run(
    tmp_path: Path, whole: Job, node: int
):
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(25, run)
    job.kill_rank(node)
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert len([event for event in job.events if event["event"] == "resumed"]) == 1
    assert job.status["restarts"] == {"job": 0, "inPlace": 1, "disruption": 0}
    assert job.losses == whole.losses
    assert job.status["attempt"] == 1


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A job that Ctrl-C stopped at step 22 or soon after."""
    job = Job(tmp_path_factory.mktemp("interrupted"), longer)
    run = job.start()
    job.wait_for_step(22, run)
    run.send_signal(signal.SIGINT)
    output, _ = run.communicate()
    assert run.returncode == 130, output
    return job


def test_ctrl_c_writes_a_checkpoint_and_the_same_command_goes_on_bit_for_bit(
    tmp_path: Path, whole: Job, interrupted: Job
):
    job = interrupted.copy(tmp_path / "job")
    assert job.status["phase"] == "Suspended"
    stopped_at = max(job.losses)
    second = job.run()
    assert second.returncode == 0, second.stdout
    resumed = next(event["step"] for event in job.events if event["event"] == "resumed")
    assert resumed >= stopped_at
    assert job.losses == whole.losses


def test_a_damaged_newest_checkpoint_is_passed_over_and_reported(tmp_path: Path, whole: Job, interrupted: Job):
    job = interrupted.copy(tmp_path / "job")
    newest = max(job.place.glob("work/checkpoints/step-????????"))
    file = newest / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert job.dstj("checkpoint", "verify", "pretrain-tiny").returncode == 77
    assert job.run().returncode == 0
    assert [event["step"] for event in job.events if event["event"] == "refused"] == [int(newest.name[5:])]
    assert job.losses == whole.losses


def test_a_killed_dstj_leaves_no_process_and_the_same_command_goes_on(tmp_path: Path, whole: Job):
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(15, run)
    pids = [int(file.read_text()) for file in job.place.glob("tmp/*/ranks/*")]
    run.kill()
    run.communicate()
    assert len(pids) == 2
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline, "a rank outlived dstj"
        time.sleep(0.05)
    second = job.run()
    assert second.returncode == 0, second.stdout
    assert job.losses == whole.losses


def test_a_full_disk_ends_the_attempt_with_the_cause_and_keeps_the_last_checkpoint(tmp_path: Path):
    def once(spec: dict[str, Any]) -> None:
        short(spec)
        spec["runPolicy"] = {"maxRestarts": 0}

    job = Job(tmp_path / "job", once)
    job.home.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", job.home], check=True)  # one checkpoint has 14
    try:
        assert job.run().returncode == ExitCode.TRY_AGAIN
        conditions = {condition["type"]: condition for condition in job.status["conditions"]}
        assert job.status["lastFailure"]["reason"] == "Storage"
        assert job.status["restarts"]["inPlace"] == 0
        assert conditions["StorageFailing"]["status"] == "True"
        assert "No space left on device" in conditions["StorageFailing"]["message"]
        assert job.status["lastCheckpoint"]["step"] == 4
        assert job.dstj("checkpoint", "verify", job.place.name).returncode == 0
    finally:
        subprocess.run(["umount", "--lazy", job.home], check=True)


@pytest.mark.long
def test_a_library_that_aborts_while_a_rank_is_torn_down_costs_neither_a_restart_nor_the_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    is_rank = "any('deepseek_trainer.train' in word for word in sys.orig_argv)"
    (tmp_path / "sitecustomize.py").write_text(f"import atexit, os, sys\nif {is_rank}: atexit.register(os.abort)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(15, run)
    run.send_signal(signal.SIGTERM)
    run.communicate()
    assert job.status["lastCheckpoint"]["step"] == max(job.losses)
    assert job.run().returncode == 0
    assert job.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}
