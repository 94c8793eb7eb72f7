"""What `dstj run` shows: a line for each change, or a panel on a terminal."""

import io

import pytest
from rich.console import Console

from dstj.screen.display import Lines, Panel
from dstj.screen.view import restarts, view
from support.builders.cli import a_job

TRAINER = {
    "stage": "training",
    "step": 40,
    "maxSteps": 120,
    "estimatedRemainingSeconds": 80,
    "metrics": [{"name": "loss", "value": "2.31"}, {"name": "tokens_per_second", "value": "210"}],
}


def a_run(**status):
    return a_job() | {"status": {"phase": "Running", "message": "all 2 pods are ready", "attempt": 1} | status}


@pytest.fixture
def lines(monkeypatch, capsys):
    """Shows manifests at given times [s]; gives the lines without their clock."""
    monkeypatch.setattr("time.strftime", lambda _: "12:00:00")
    now = [0.0]
    display = Lines(clock=lambda: now[0])

    def show(*shown):
        for now[0], manifest in shown:
            display.show(manifest)
        return [line.removeprefix("[12:00:00] ") for line in capsys.readouterr().out.splitlines()]

    return show


def test_phase_is_printed_once(lines):
    assert lines((0, a_run()), (1, a_run()), (2, a_run())) == ["Running, attempt 1: all 2 pods are ready"]


def test_what_a_run_finds_out_about_itself_is_printed_once(lines):
    found = [
        {"type": "DataComplete", "status": "False", "message": "of 9 records 2 dropped"},
        {"type": "Improved", "status": "True", "message": "held-out loss fell from 2 to 1"},
    ]
    shown = lines((0, a_run(conditions=found)), (1, a_run(conditions=found)))
    assert shown[1:] == ["of 9 records 2 dropped"]


def test_progress_is_printed_with_loss_speed_and_time_left(lines):
    assert lines((0, a_run(trainerStatus=TRAINER)))[2] == "step 40/120, loss 2.31, tokens/s 210, 0:01:20 left"


def test_progress_is_printed_every_five_seconds_at_most(lines):
    shown = [(second, a_run(trainerStatus=TRAINER | {"step": second})) for second in range(12)]
    assert [line.split(",")[0] for line in lines(*shown)[2:]] == ["step 0/120", "step 5/120", "step 10/120"]


def test_progress_that_stands_still_is_not_repeated(lines):
    assert len(lines((0, a_run(trainerStatus=TRAINER)), (10, a_run(trainerStatus=TRAINER)))) == 3


def test_stage_is_printed_when_it_changes(lines):
    stages = ["preparing", "preparing", "evaluating"]
    shown = lines(*((i, a_run(trainerStatus={"stage": stage})) for i, stage in enumerate(stages)))
    assert shown[1:] == ["preparing", "evaluating"]


def test_progress_from_before_a_suspension_is_not_printed_again(lines):
    shown = lines((0, a_run(phase="Starting", trainerStatus=TRAINER)), (1, a_run(trainerStatus={"stage": "preparing"})))
    assert shown[1:] == ["Running, attempt 1: all 2 pods are ready", "preparing"]


def test_restart_is_printed_with_its_cause(lines):
    shown = lines((0, a_run()), (1, a_run(restarts={"inPlace": 1})), (2, a_run(restarts={"inPlace": 1})))
    assert shown[1:] == ["restarts: 1 in place"]


def test_checkpoint_is_printed_at_once(lines):
    last = {"step": 40, "sizeBytes": 3 << 19, "sealed": True}
    shown = lines((0, a_run()), (1, a_run(lastCheckpoint=last)), (2, a_run(lastCheckpoint=last)))
    assert shown[1:] == ["checkpoint step 40 (1.5 MiB, sealed)"]


def test_job_without_a_status_is_pending():
    assert (view(a_job()).phase, view(a_job()).progress) == ("Pending", "")


@pytest.mark.parametrize(
    ("counts", "text"),
    [({}, "0"), ({"job": 2}, "2 after failures"), ({"inPlace": 1, "disruption": 3}, "1 in place, 3 after disruptions")],
)
def test_restarts_are_counted_by_cause(counts, text):
    assert restarts(counts) == text


def test_panel_shows_the_same_facts_on_a_terminal():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    panel = Panel(console)
    panel.show(a_run(trainerStatus=TRAINER, restarts={"job": 1}))
    panel.note("[not] markup")
    panel.close()
    shown = console.file.getvalue()
    for fact in ("tiny", "Running", "step 40/120", "2.31", "210", "0:01:20", "1 after failures", "[not] markup"):
        assert fact in shown


FORGED = "\n[12:00:00] Succeeded\x1b[2J\r\u202e"


@pytest.mark.parametrize("field", ["phase", "message"])
def test_a_status_of_others_is_one_printable_line(lines, field):
    (line, *_) = lines((0, a_run(**{field: FORGED})))
    assert line.isprintable()
    assert "\\n[12:00:00] Succeeded\\x1b[2J" in line


def test_a_panel_shows_no_escape_sequence_of_others():
    output = io.StringIO()
    panel = Panel(Console(file=output, width=100))
    panel.show(a_run(message=FORGED, trainerStatus=TRAINER | {"stage": FORGED}))
    panel.note(FORGED)
    panel.close()
    assert {"\x1b", "\r", "\u202e"}.isdisjoint(output.getvalue())
