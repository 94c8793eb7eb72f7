import json
import math
from pathlib import Path

import pytest

from deepseek_trainer.telemetry.events import EventLog, log_line


def test_a_log_line_is_the_one_people_grep_for():
    line = log_line({"event": "evaluation", "time": 0, "epoch": 12, "trainLoss": 0.82, "loss": 0.85})
    assert line == "epoch=12, train_loss=0.82, val_loss=0.85"


def test_other_events_carry_their_name():
    assert log_line({"event": "checkpoint", "time": 0, "step": 5, "sizeBytes": 9}) == "checkpoint: step=5, size_bytes=9"


def test_events_go_to_the_file_to_the_screen_and_into_the_history(tmp_path: Path, capsys):
    log = EventLog(tmp_path / "logs" / "events.jsonl", history=[{"event": "step", "step": 1, "time": 0}])
    log.emit("step", step=2, loss=0.5)
    (line,) = (tmp_path / "logs" / "events.jsonl").read_text().splitlines()
    assert json.loads(line)["loss"] == 0.5
    assert [event["step"] for event in log.history] == [1, 2]
    assert log.last("step") == log.history[1]
    assert log.last("evaluation") is None
    assert "INFO: step=2, train_loss=0.5" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_hold_is_null_for_programs_and_itself_for_people(
    tmp_path: Path, capsys, value: float
):
    log = EventLog(tmp_path / "events.jsonl")
    log.emit("evaluation", step=2, loss=value)
    line = (tmp_path / "events.jsonl").read_text()
    assert json.loads(line, parse_constant=pytest.fail)["loss"] is None
    assert log.last("evaluation")["loss"] is None
    assert f"step=2, val_loss={value:.4g}" in capsys.readouterr().out


def test_a_log_line_leaves_tables_out():
    line = log_line({"event": "result", "time": 0, "loss": 0.5, "classification": {"confusion": [[1, 0], [0, 1]]}})
    assert line == "result: loss=0.5"
