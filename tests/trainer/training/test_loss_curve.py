"""What a tiny model from scratch learns, step by step: whatever changes it was meant to, or is a mistake."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from support.builders.run import a_job, a_worker, events, trained

OPTIMIZATION = {
    "maxSteps": 20,
    "globalBatchSize": 4,
    "microBatchSize": 2,
    "learningRate": 0.01,
    "warmupSteps": 2,
    "precision": "FP32",
}
# Between builds of BLAS sums differ in their last bits, and what follows from them a little more.
ROUNDING = 1e-4


def test_the_golden_loss_curve_of_a_job_from_scratch(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    golden_numbers: Callable[[str, Mapping[str, list[float]], float], None],
):
    with a_worker(tmp_path, monkeypatch) as paths:
        trained(a_job(**OPTIMIZATION), paths)
        by_kind = {kind: [each for each in events(paths) if each["event"] == kind] for kind in ("step", "evaluation")}
    curve = {
        "train": [each["loss"] for each in by_kind["step"]],
        "validation": [each["loss"] for each in by_kind["evaluation"]],
        "gradientNorm": [each["gradNorm"] for each in by_kind["step"]],
    }
    assert [len(numbers) for numbers in curve.values()] == [20, 21, 20]
    golden_numbers("loss_curve.json", curve, ROUNDING)
