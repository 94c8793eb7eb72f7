"""Profiles of a few steps, as a signal asks for them."""

import gzip
import json
from pathlib import Path
from typing import Any

import torch

from deepseek_trainer.telemetry.profiler import STEPS, Profiler


class Requests:
    """Asked for before these steps."""

    def __init__(self, trace: Path, *steps: int) -> None:
        self._steps, self._step = steps, 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.profiler = Profiler(trace, lambda: self._step in self._steps, self._emit)

    def run(self, *, last: int) -> None:
        for step in range(1, last + 1):
            self._step = step
            self.profiler.before_step(step)
            torch.randn(3, 5) @ torch.randn(5, 7)
        self.profiler.finish(last + 1)

    def _emit(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))


def events_of(trace: Path) -> list[dict[str, Any]]:
    return json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def test_a_request_records_the_next_steps_with_shapes(tmp_path: Path):
    trace = tmp_path / "trace.json.gz"
    requests = Requests(trace, 3)
    requests.run(last=20)
    assert requests.events == [("profiled", {"step": 3, "steps": STEPS, "path": str(trace)})]
    products = [event for event in events_of(trace) if event["name"] == "aten::mm"]
    assert [event["args"]["Input Dims"] for event in products] == [[[3, 5], [5, 7]]] * STEPS
    assert [file.name for file in tmp_path.iterdir()] == ["trace.json.gz"]


def test_a_request_during_a_record_is_dropped_and_one_after_it_begins_another(tmp_path: Path):
    requests = Requests(tmp_path / "trace.json.gz", 2, 4, 9)
    requests.run(last=20)
    assert [fields["step"] for _, fields in requests.events] == [2, 9]


def test_a_run_that_ends_first_leaves_the_steps_that_there_were(tmp_path: Path):
    requests = Requests(tmp_path / "trace.json.gz", 2)
    requests.run(last=3)
    assert requests.events[0][1]["steps"] == 2


def test_a_trace_has_nothing_of_a_tensor_but_its_shape(tmp_path: Path):
    secret = torch.tensor([314159265.0, 271828182.0])
    profiler = Profiler(tmp_path / "trace.json.gz", lambda: True, lambda *_, **__: None)
    profiler.before_step(1)
    (secret * secret).sum().item()
    secret.long().tolist()
    torch.nn.functional.embedding(torch.tensor([[1234567]]), torch.randn(2_000_000, 1))
    profiler.finish(2)
    text = gzip.decompress((tmp_path / "trace.json.gz").read_bytes()).decode()
    assert "aten::embedding" in text
    assert not any(number in text for number in ("314159265", "271828182", "1234567"))


def test_a_place_that_cannot_be_written_is_reported_and_stops_nothing(tmp_path: Path):
    requests = Requests(tmp_path / "missing" / "trace.json.gz", 1)
    requests.run(last=8)
    ((event, fields),) = requests.events
    assert (event, fields["step"]) == ("profile_failed", 1 + STEPS)
