"""What is said of a job that has stopped."""

import json
from pathlib import Path

import pytest

from dstj.local.home import JobHome
from dstj.screen.outcome import summary


@pytest.mark.parametrize(
    ("losses", "line"),
    [
        ([3.0, 2.5, 2.0], "  held-out loss 3.000 before, 2.000 after"),
        ([3.0, None], "  held-out loss 3.000 before, not finite after"),
        ([], None),
    ],
)
def test_the_summary_compares_the_first_loss_with_the_last(
    tmp_path: Path, losses: list[float | None], line: str | None
):
    home = JobHome(tmp_path)
    home.paths.logs.mkdir(parents=True)
    events = [json.dumps({"event": "evaluation", "loss": loss}) for loss in losses]
    (home.paths.logs / "events.jsonl").write_text("\n".join(events))
    lines = list(summary({"metadata": {"name": "tiny"}, "status": {"phase": "Running"}}, home))
    assert [found for found in lines if "held-out" in found] == ([line] if line else [])


def test_the_summary_compares_the_labels_chosen_before_and_after(tmp_path: Path):
    home = JobHome(tmp_path)
    home.paths.logs.mkdir(parents=True)
    events = [json.dumps({"event": "classification", "accuracy": accuracy}) for accuracy in (0.25, 0.975)]
    (home.paths.logs / "events.jsonl").write_text("\n".join(events))
    lines = list(summary({"metadata": {"name": "tiny"}, "status": {"phase": "Running"}}, home))
    assert "  right labels  25.0% before, 97.5% after" in lines
