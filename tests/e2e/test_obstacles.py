"""FIFOs in the places of files that a real run opens: it ends by itself, within seconds, and names the file."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deepseek_trainer.contract.names import ExitCode
from support.builders.local_job import EXAMPLES, Job, longer, sealed, short

PATIENCE_S = 90  # torch is imported by every process of a run
pytestmark = pytest.mark.timeout(300)
ON_THE_VOLUME = [
    "checkpoints/HEAD.json.sealed",
    "prepared/*/manifest.json.sealed",
    "prepared/*/train-00000.rows.sealed",
]


def ended(run: subprocess.Popen[str]) -> str:
    output, _ = run.communicate(timeout=PATIENCE_S)
    return output


def made_a_fifo(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def test_data(tmp_path: Path):
    shutil.copytree(EXAMPLES / "texts", tmp_path / "texts")
    made_a_fifo(tmp_path / "texts" / "train" / "a.txt")
    job = Job(tmp_path / "job", short, texts=tmp_path / "texts")
    assert "a.txt' is a FIFO" in ended(run := job.start())
    assert run.returncode == ExitCode.DATA


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """A sealed job that Ctrl-C has stopped after its first checkpoint."""
    job = Job(tmp_path_factory.mktemp("stopped") / "job", lambda spec: (longer(spec), sealed(spec)))
    assert job.dstj("keys", "generate", "--secret", "key").returncode == 0
    run = job.start()
    job.wait_for_step(12, run)
    run.send_signal(2)
    ended(run)
    assert run.returncode == 130
    return job


@pytest.mark.parametrize("place", ON_THE_VOLUME)
def test_what_a_run_goes_on_from(stopped: Job, tmp_path: Path, place: str):
    job = stopped.copy(tmp_path / "job")
    (file, *_) = [found for found in (job.place / "work").glob(place) if "runs" not in found.parts]
    made_a_fifo(file)
    output = ended(run := job.start())
    assert "is a FIFO" in output
    assert run.returncode == ExitCode.INTEGRITY, output
