"""examples/digits.yaml as it is shipped, by `dstj run`: what it learns, what that costs, and that no kill shows."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoImageProcessor, AutoModelForImageClassification

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Digits:
    """A copy of the example in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.file, self.home = directory / "digits.yaml", directory / "home"
        self.work = self.home / "digits" / "work"
        shutil.copy(EXAMPLES / "digits.yaml", self.file)
        subprocess.run([sys.executable, EXAMPLES / "digits.py", directory / "digits"], check=True)

    def start(self) -> subprocess.Popen[str]:
        """On one core, so that CPU seconds are not spent on waiting for another one."""
        core = str(min(os.sched_getaffinity(0)))
        return subprocess.Popen(
            ["taskset", "-c", core, sys.executable, "-m", "dstj.cli", "run", str(self.file)],
            env=os.environ | {"DSTJ_HOME": str(self.home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for_step(self, step: int, run: subprocess.Popen[str]) -> None:
        while step not in self.losses:
            assert run.poll() is None
            time.sleep(0.05)

    def kill_the_rank(self) -> None:
        (file,) = self.home.glob("digits/tmp/*/ranks/0")
        os.kill(int(file.read_text()), signal.SIGKILL)

    @property
    def events(self) -> list[dict[str, Any]]:
        file = self.work / "logs" / "events.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def losses(self) -> dict[int, float]:
        return {event["step"]: event["loss"] for event in self.events if event["event"] == "step"}

    @property
    def result(self) -> Path:
        return self.work / "export" / "digits"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Digits:
    """An uninterrupted run, in less than a minute of CPU."""
    digits = Digits(tmp_path_factory.mktemp("whole"))
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    run = digits.start()
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 60
    return digits


def test_digits_are_recognised_and_the_scores_tell_how_well(whole: Digits):
    scores = json.loads((whole.result / "evaluation.json").read_text())
    before, after = scores["before"]["classification"], scores["after"]["classification"]
    assert before["accuracy"] < 0.3
    assert after["total"] == 364
    assert after["accuracy"] >= 0.97
    assert after["macroF1"] >= 0.97
    assert after["rocAuc"] >= 0.995
    assert AutoModelForImageClassification.from_pretrained(whole.result).config.id2label[3] == "3"
    assert AutoImageProcessor.from_pretrained(whole.result).size["height"] == 32


def test_a_rank_that_was_killed_leaves_no_trace_in_losses_or_weights(tmp_path: Path, whole: Digits):
    digits = Digits(tmp_path)
    run = digits.start()
    digits.wait_for_step(200, run)
    digits.kill_the_rank()
    output, _ = run.communicate()
    assert run.returncode == 0, output
    assert [event["step"] for event in digits.events if event["event"] == "resumed"] == [150]
    assert digits.losses == whole.losses
    for name in ("model.safetensors", "config.json", "preprocessor_config.json"):
        assert (digits.result / name).read_bytes() == (whole.result / name).read_bytes()
