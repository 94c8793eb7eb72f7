"""One story in every form: /progress, events and TensorBoard say the same."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deepseek_trainer.budget.perf import Yardstick
from deepseek_trainer.checkpoints.saver import Saved
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.evaluation.evaluate import EvalResult
from deepseek_trainer.telemetry.events import snake
from deepseek_trainer.telemetry.meter import Ranks
from deepseek_trainer.telemetry.progress import MEASURED_GAUGES, Progress
from deepseek_trainer.telemetry.reporter import Reporter, Silent, StepResult
from support.builders.vault import a_state, a_store


def facts_of(progress: Progress) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(progress.to_json())
    return facts


def a_step(step: int, loss: float | None, ranks: Ranks | None = None) -> StepResult:
    return StepResult(
        step=step, max_steps=600, epoch=step / 10, rows=4, loss=loss, grad_norm=1.0, learning_rate=0.1, ranks=ranks
    )


def test_progress_moves_with_every_step_and_the_loss_with_those_that_are_logged(tmp_path: Path):
    progress = Progress()
    reporter = Reporter(Paths(tmp_path), progress)
    reporter.step(a_step(1, None), size=10, seconds=1.0)
    assert facts_of(progress).items() >= {"stage": "training", "step": 1, "maxSteps": 600, "epoch": 0.1}.items()
    reporter.step(a_step(2, 4.0), size=30, seconds=3.0)
    reporter.step(a_step(3, None), size=30, seconds=3.0)
    facts = facts_of(progress)
    assert (facts["step"], facts["loss"], facts["tokensPerSecond"], facts["etaSeconds"]) == (3, 4.0, 10.0, 598 * 2)
    assert b"dstj_trainer_step 3.0" in progress.to_prometheus()
    assert [(event["step"], event["loss"]) for event in reporter.history] == [(2, 4.0)]


def test_what_the_ranks_measured_is_reported_alike_everywhere(tmp_path: Path):
    progress = Progress()
    reporter = Reporter(Paths(tmp_path), progress, yardstick=Yardstick(peak=1000.0, of_token=50, of_row=400))
    ranks = Ranks(waited=[0.1, 0.2, 0.4], alone=[1.0, 3.0, 1.5], memory=[5e9, 7e9, 6e9])
    reporter.step(a_step(1, None), size=10, seconds=1.0)
    reporter.step(a_step(2, 4.0, ranks), size=30, seconds=3.0)
    reporter.close()
    expected = {
        "samplesPerSecond": 2.0,
        "tokensPerSecond": 10.0,
        "mfu": 0.5,
        "hfu": 0.8,
        "dataWaitShare": 0.1,
        "peakMemoryBytes": 7e9,
        "rankSkew": 2.0,
        "slowestRank": 1,
    }
    assert facts_of(progress).items() >= expected.items()
    assert reporter.history[-1].items() >= expected.items()
    board = EventAccumulator(str(tmp_path / "work" / "logs" / "tensorboard"))
    board.Reload()
    for name, value in expected.items():
        assert board.Scalars(f"{snake(name)}/train")[-1].value == pytest.approx(value)
    page = progress.to_prometheus().decode()
    for gauge, _, field in MEASURED_GAUGES:
        shown = re.search(rf"^{gauge} (\S+)$", page, re.MULTILINE)
        assert (float(shown[1]) if shown else None) == expected.get(field)


def test_what_is_not_known_is_reported_nowhere(tmp_path: Path):
    progress = Progress()
    reporter = Reporter(Paths(tmp_path), progress)
    reporter.step(a_step(1, 4.0, Ranks(waited=[0.0], alone=[1.0], memory=[5e9])), size=30, seconds=3.0)
    assert not {"mfu", "hfu", "rankSkew", "slowestRank"} & (facts_of(progress).keys() | reporter.history[-1].keys())
    page = progress.to_prometheus()
    assert b"dstj_trainer_samples_per_second" in page
    assert b"dstj_trainer_mfu" not in page


def test_a_rank_that_is_not_the_lead_logs_its_own_events(capsys: pytest.CaptureFixture[str]):
    Silent().own("profiled", rank=3, path="/tmp/profile")
    assert capsys.readouterr().out.endswith("INFO: profiled: rank=3, path=/tmp/profile\n")


def test_what_led_to_a_checkpoint_is_on_the_disk_with_it(tmp_path: Path):
    reporter = Reporter(Paths(tmp_path), Progress())
    reporter.step(a_step(2, 4.0), size=30, seconds=3.0)
    reporter.checkpoint(Saved(a_store(tmp_path).save(2, a_state(2), {}), seconds=0.1, stall_seconds=0.01))
    board = EventAccumulator(str(tmp_path / "work" / "logs" / "tensorboard"))
    board.Reload()
    assert [(point.step, point.value) for point in board.Scalars("loss/train")] == [(2, 4.0)]


def test_how_long_training_waited_for_a_checkpoint_is_on_the_board(tmp_path: Path):
    reporter = Reporter(Paths(tmp_path), Progress())
    for step, stall in ((2, 0.25), (4, 0.5)):
        reporter.checkpoint(Saved(a_store(tmp_path).save(step, a_state(2), {}), seconds=2.0, stall_seconds=stall))
    board = EventAccumulator(str(tmp_path / "work" / "logs" / "tensorboard"))
    board.Reload()
    drawn = {name: [(point.step, point.value) for point in board.Scalars(name)] for name in board.Tags()["scalars"]}
    assert drawn == {"stall_seconds/checkpoint": [(2, 0.25), (4, 0.5)], "seconds/checkpoint": [(2, 2.0), (4, 2.0)]}


def test_an_evaluation_without_a_number_is_reported_as_one(tmp_path: Path):
    progress = Progress()
    reporter = Reporter(Paths(tmp_path), progress)
    reporter.evaluation(3, 1.0, EvalResult(float("inf"), {"perplexity": None}))
    assert facts_of(progress)["evalLoss"] is None
    (line,) = (tmp_path / "work" / "logs" / "events.jsonl").read_text().splitlines()
    event = json.loads(line, parse_constant=pytest.fail)
    assert (event["loss"], event["perplexity"]) == (None, None)


def test_an_evaluation_reports_how_far_it_is_from_the_last_training_loss(tmp_path: Path):
    reporter = Reporter(Paths(tmp_path), Progress())
    reporter.evaluation(0, 0.0, EvalResult(4.0, {"bitsPerByte": 1.5}))
    reporter.step(a_step(2, 3.0), size=30, seconds=3.0)
    reporter.evaluation(2, 1.0, EvalResult(3.25, {"bitsPerByte": None}))
    first, last = (event for event in reporter.history if event["event"] == "evaluation")
    assert (first["trainLoss"], first["gap"], first["bitsPerByte"]) == (None, None, 1.5)
    assert (last["trainLoss"], last["gap"], last["bitsPerByte"]) == (3.0, 0.25, None)
