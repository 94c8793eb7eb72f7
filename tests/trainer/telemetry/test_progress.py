import json
import socket
import urllib.error
import urllib.request

import pytest

from deepseek_trainer.telemetry.progress import CHECKPOINT_GAUGES, GAUGES, MEASURED_GAUGES, Progress, serve


def served(progress: Progress, path: str) -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve(progress, "127.0.0.1", port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return answer.read().decode()


def test_progress_shows_the_latest_facts_as_json():
    progress = Progress()
    progress.update(stage="preparing")
    progress.update(stage="training", step=3, maxSteps=10)
    facts = json.loads(served(progress, "/progress"))
    assert {"stage": "training", "step": 3, "maxSteps": 10}.items() <= facts.items()
    assert facts["updatedTime"].endswith("Z")


def test_metrics_show_every_gauge_that_has_a_fact():
    progress = Progress()
    progress.update(**dict.fromkeys((field for _, _, field in (*GAUGES, *MEASURED_GAUGES)), 7))
    progress.update(lastCheckpoint=dict.fromkeys((field for _, _, field in CHECKPOINT_GAUGES), 7))
    progress.count("tokens", 41)
    page = served(progress, "/metrics")
    for name, _, _ in (*GAUGES, *MEASURED_GAUGES, *CHECKPOINT_GAUGES):
        assert f"\n{name} 7.0" in page
    assert "dstj_trainer_tokens_total 41.0" in page


def test_a_fact_that_json_cannot_hold_is_null_and_in_metrics_itself():
    progress = Progress()
    progress.update(evalLoss=float("nan"), step=3)
    facts = json.loads(progress.to_json(), parse_constant=pytest.fail)
    assert (facts["evalLoss"], facts["step"]) == (None, 3)
    assert b"\ndst_trainer_eval_loss NaN\n" in progress.to_prometheus()


def test_an_unknown_page_is_not_found():
    with pytest.raises(urllib.error.HTTPError, match="404"):
        served(Progress(), "/secrets")


def test_a_fact_that_progress_has_no_field_for_is_refused():
    with pytest.raises(TypeError, match=r"no field \['evalAccuracy'\]: give it one in contract/progress.py"):
        Progress().update(evalAccuracy=0.5)
