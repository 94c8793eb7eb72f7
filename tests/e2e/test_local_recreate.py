"""Jobs through `dstj run --recreate`, on the work volume that the job before left: no old model as a new success."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from support.builders.local_job import Job, short


def change(job: Job, resume_from: str = "Latest", **optimization: Any) -> None:
    manifest = yaml.safe_load(job.file.read_text())
    manifest["spec"]["optimization"] |= optimization
    manifest["spec"]["checkpoint"]["resumeFrom"] = resume_from
    job.file.write_text(yaml.safe_dump(manifest))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Job:
    job = Job(tmp_path_factory.mktemp("finished"), lambda spec: (short(spec), spec["trainer"].update(numNodes=1)))
    change(job, maxSteps=4)
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    return job


def test_another_rate_is_refused_with_code_64_and_names_both_rates_and_the_ways_out(tmp_path: Path, finished: Job):
    job = finished.copy(tmp_path / "job")
    change(job, learningRate=0.0001)
    done = job.run("--recreate")
    output = done.stdout + done.stderr
    assert done.returncode == 64, output
    assert "optimization.learningRate: 0.0001 instead of 0.003" in output
    assert "checkpoint.resumeFrom: '4'" in output
    assert job.status["phase"] == "Failed"
    assert job.status["attempt"] == 1


def test_the_same_job_is_no_success_once_its_result_is_there(tmp_path: Path, finished: Job):
    job = finished.copy(tmp_path / "job")
    done = job.run("--recreate")
    assert done.returncode == 64, done.stdout + done.stderr
    assert "has trained this model to its end, step 4" in done.stdout + done.stderr


def test_a_named_step_goes_on_with_the_new_settings_and_the_card_tells_what_trained_the_weights(
    tmp_path: Path, finished: Job
):
    job = finished.copy(tmp_path / "job")
    change(job, "4", learningRate=0.0001, maxSteps=6)
    done = job.run("--recreate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert job.losses.keys() == {1, 2, 3, 4, 5, 6}
    card = (job.export / "README.md").read_text()
    assert "optimization.maxSteps: 4, optimization.learningRate: 0.003 |" in card
    assert "| learningRate | 0.0001 |" in card
