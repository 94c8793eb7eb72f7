"""Whole jobs through `dstj run`, from text to a model, or to what is wrong with the text."""

import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from support.builders.local_job import EXAMPLES, STEPS, Job, longer, short


def test_a_job_goes_from_text_to_a_model_that_plain_transformers_loads(whole: Job):
    assert whole.status["phase"] == "Succeeded"
    assert whole.losses[STEPS] < whole.losses[1] - 1
    export = whole.export
    assert {"README.md", "report.html", "evaluation.json"} <= {path.name for path in export.iterdir()}
    model = AutoModelForCausalLM.from_pretrained(export)
    tokens = AutoTokenizer.from_pretrained(export)("The Rays of Light", return_tensors="pt")
    assert model(**tokens, labels=tokens["input_ids"]).loss < whole.losses[1]
    assert list((whole.place / "work" / "logs" / "tensorboard").iterdir())
    assert whole.status["trainerStatus"]["progressPercentage"] == 100
    assert whole.status["lastCheckpoint"]["step"] == STEPS


def test_an_evaluation_writes_the_log_line_that_people_grep_for(whole: Job):
    (log,) = whole.place.glob("logs/*-0/trainer.log")
    line = r"^\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] INFO: epoch=[\d.]+, train_loss=[\d.]+, val_loss=[\d.]+"
    assert re.search(line, log.read_text(), re.MULTILINE)


def test_a_sharded_job_answers_and_exports_as_one_of_whole_copies(tmp_path: Path, whole: Job):
    answers_and_exports_as(whole, Job(tmp_path, of_strategy("FSDP", emaDecay=0.9)))


@pytest.mark.long
def test_a_job_under_zero_answers_and_exports_as_one_of_whole_copies(tmp_path: Path, whole: Job):
    """Its weights, one by one, are those of test_zero_learner.py."""
    answers_and_exports_as(whole, Job(tmp_path, of_strategy("ZeRO3")))


def of_strategy(strategy: str, **changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(spec: dict[str, Any]) -> None:
        longer(spec)
        spec["optimization"] |= {"strategy": strategy, **changes}
        spec["evaluation"]["generations"] = 3  # one rank asks two, the other one

    return change


def answers_and_exports_as(whole: Job, job: Job) -> None:
    done = job.run()
    assert done.returncode == 0, done.stdout + done.stderr
    # Sums in another order differ in their last bits, of which steps of few rows soon make more.
    assert early(job) == pytest.approx(early(whole), rel=1e-5)
    assert job.losses == pytest.approx(whole.losses, rel=0.02)
    assert json.loads((job.export / "evaluation.json").read_text())["answers"][0]["after"]
    assert AutoModelForCausalLM.from_pretrained(job.export).num_parameters() > 1_000_000
    assert job.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}


def early(job: Job) -> dict[int, float]:
    return {step: loss for step, loss in job.losses.items() if step <= 15}


def test_a_profile_of_a_running_job_is_where_the_log_says(tmp_path: Path):
    job = Job(tmp_path / "job", longer)
    run = job.start()
    job.wait_for_step(2, run)
    job.ask_for_profile(0)
    while not any(event["event"] == "profiled" for event in job.events):
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.05)
    (profiled,) = (event for event in job.events if event["event"] == "profiled")
    assert (profiled["rank"], profiled["steps"]) == (0, 5)
    trace = json.loads(gzip.decompress(Path(profiled["path"]).read_bytes()))
    assert "aten::mm" in {event["name"] for event in trace["traceEvents"]}
    run.terminate()
    output, _ = run.communicate()
    assert job.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}, output


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        pytest.param(['{"text": "a long enough text"}', '{"txt": "b"}'], "train.jsonl:2", id="missing-field"),
        pytest.param(['{"text": '], "train.jsonl:1", id="not-json", marks=pytest.mark.long),
        pytest.param([""], "no record", id="empty", marks=pytest.mark.long),
    ],
)
def test_malformed_data_end_the_job_with_code_65_naming_file_and_line(tmp_path: Path, lines: list[str], problem: str):
    def own_data(spec: dict[str, Any]) -> None:
        short(spec)
        spec["data"]["train"] = {"claimName": "own", "path": "train.jsonl"}

    own = tmp_path / "own"
    own.mkdir()
    (own / "train.jsonl").write_text("\n".join(lines) + "\n")
    done = Job(tmp_path / "job", own_data, own=own, texts=EXAMPLES / "texts").run()
    assert done.returncode == 65, done.stdout + done.stderr
    assert problem in done.stdout + done.stderr


def test_a_job_whose_data_are_missing_ends_at_once_with_the_documented_code_and_a_way_out(tmp_path: Path):
    job = Job(tmp_path / "job", lambda spec: (short(spec), spec["data"]["train"].update(path="nowhere")))
    done = job.run()
    assert done.returncode == 65, done.stdout + done.stderr
    assert "nowhere" in done.stdout + done.stderr
    assert job.status["lastFailure"]["exitCode"] == 65
    assert job.status["attempt"] == 1
