"""From /progress to the status: coalesced, and harmless whatever a pod answers."""

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_operator.jobs.labels import ATTEMPT, COMPLETION_INDEX
from deepseek_operator.jobs.progress import last_words, with_progress
from deepseek_operator.jobs.status import JobStatus, TrainerStatus
from deepseek_trainer.contract.progress import Progress
from support.builders.operator import NOW

ANSWER: dict[str, Any] = {
    "stage": "training",
    "step": 40,
    "maxSteps": 120,
    "epoch": 0.5,
    "loss": 2.345678,
    "evalLoss": 2.5,
    "learningRate": 1e-4,
    "tokensPerSecond": 1234.5,
    "etaSeconds": 77.9,
    "restartCount": 1,
    "lastCheckpoint": {
        "step": 30,
        "time": "2026-01-02T03:00:00Z",
        "sizeBytes": 1024,
        "sealed": True,
        "keyId": "kek",
        "manifestDigest": "ab",
        "path": "unknown fields are ignored",
    },
    "updatedTime": "2026-01-02T03:04:05Z",
}


def after(before: JobStatus, answer: dict[str, Any], seconds: int) -> JobStatus:
    return with_progress(before, Progress.model_validate(answer), 15, NOW + timedelta(seconds=seconds))


def test_progress_has_the_shape_of_kep_2779() -> None:
    status = after(JobStatus(), ANSWER, 0).manifest()
    assert status["trainerStatus"] == {
        "progressPercentage": 33,
        "estimatedRemainingSeconds": 77,
        "metrics": [
            {"name": "loss", "value": "2.34568"},
            {"name": "eval_loss", "value": "2.5"},
            {"name": "learning_rate", "value": "0.0001"},
            {"name": "tokens_per_second", "value": "1234.5"},
        ],
        "stage": "training",
        "step": 40,
        "maxSteps": 120,
        "epoch": "0.5",
        "lastUpdatedTime": "2026-01-02T03:04:05Z",
    }
    assert status["lastCheckpoint"] == {
        "step": 30,
        "time": "2026-01-02T03:00:00Z",
        "sizeBytes": 1024,
        "sealed": True,
        "keyId": "kek",
        "manifestDigest": "ab",
    }
    assert status["restarts"]["inPlace"] == 1


@pytest.mark.parametrize(
    ("change", "seconds", "is_written"),
    [
        pytest.param({"step": 41}, 14, False, id="a-step-too-soon"),
        pytest.param({"step": 41}, 15, True, id="a-step-in-time"),
        pytest.param({"updatedTime": "2027-01-01T00:00:00Z"}, 99, False, id="nothing-but-a-heartbeat"),
        pytest.param({"stage": "exporting"}, 1, True, id="a-stage"),
        pytest.param({"lastCheckpoint": {"step": 40}}, 1, True, id="a-checkpoint"),
        pytest.param({"restartCount": 2}, 1, True, id="a-restart"),
        pytest.param({"records": {"records": 9, "dropped": 1}}, 1, True, id="records-left-out"),
        pytest.param({"staleEvaluations": 3}, 1, True, id="an-early-stop"),
    ],
)
def test_a_step_is_written_now_and_then_and_a_turn_at_once(
    change: dict[str, Any], seconds: int, is_written: bool
) -> None:
    before = after(JobStatus(), ANSWER, 0)
    assert (after(before, ANSWER | change, seconds) != before) is is_written


def test_a_pod_that_does_not_answer_leaves_the_last_word() -> None:
    before = after(JobStatus(), ANSWER, 0)
    assert with_progress(before, None, 15, NOW + timedelta(hours=1)) == before


WORDS = st.text("aZ9-:. \n\x00", max_size=80)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS
JSON = SCALARS | st.lists(SCALARS, max_size=2) | st.dictionaries(WORDS, SCALARS, max_size=2)
ODD = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys((*ANSWER, "records", "staleEvaluations", "initialEvalLoss", "finalEvalLoss"), JSON)
    | {"lastCheckpoint": st.dictionaries(st.sampled_from(list(ANSWER["lastCheckpoint"])), JSON)},
)


@given(ODD)
def test_whatever_a_pod_answers_makes_a_status_within_its_schema(answer: dict[str, Any]) -> None:
    status = after(JobStatus(), answer, 0)
    written = json.loads(json.dumps(status.manifest(), allow_nan=False))
    assert JobStatus.model_validate(written) == status
    numbers = (written.get("trainerStatus", {}) | written.get("lastCheckpoint", {})).values()
    assert all(number < 2**63 for number in numbers if isinstance(number, int))


def test_a_time_before_all_time_is_refused_not_raised() -> None:
    checkpoint = {"step": 1, "time": "0001-01-01T00:00:00+14:00"}
    status = after(JobStatus(), {"lastCheckpoint": checkpoint}, 0)
    assert status.last_checkpoint is None
    assert isinstance(status.trainer_status, TrainerStatus)


def a_finished_pod(index: str, attempt: int, exit_code: int, message: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {ATTEMPT: str(attempt)}, "annotations": {COMPLETION_INDEX: index}},
        "status": {"containerStatuses": [{"state": {"terminated": {"exitCode": exit_code, "message": message}}}]},
    }


@pytest.mark.parametrize(
    ("pod", "is_told"),
    [
        pytest.param(a_finished_pod("0", 2, 0, json.dumps(ANSWER)), True, id="node-0-of-this-attempt"),
        pytest.param(a_finished_pod("0", 2, 143, json.dumps(ANSWER)), True, id="stopped-after-its-checkpoint"),
        pytest.param(a_finished_pod("1", 2, 0, json.dumps(ANSWER)), False, id="another-node"),
        pytest.param(a_finished_pod("0", 1, 0, json.dumps(ANSWER)), False, id="an-older-attempt"),
        pytest.param(a_finished_pod("0", 2, 75, json.dumps(ANSWER)), True, id="failed-after-its-checkpoint"),
        pytest.param(a_finished_pod("0", 2, 75, '{"exitCode": 75}'), False, id="killed-without-a-word"),
        pytest.param(a_finished_pod("0", 2, 0, "[1]"), False, id="not-an-object"),
        pytest.param(a_finished_pod("0", 2, 75, "[" * 4000), False, id="a-bomb"),
        pytest.param(a_finished_pod("0", 2, 0, ""), False, id="nothing-said"),
    ],
)
def test_the_last_progress_of_a_finished_attempt_is_what_its_node_0_left(pod: dict[str, Any], is_told: bool):
    assert last_words([pod], attempt=2) == (Progress.model_validate(ANSWER) if is_told else None)


def test_of_a_replaced_pod_of_node_0_the_later_one_has_the_last_word():
    evicted, replacement = (a_finished_pod("0", 2, 143, json.dumps(ANSWER | {"step": step})) for step in (7, 9))
    for pod, at in ((evicted, "2026-01-01T00:00:00Z"), (replacement, "2026-01-01T00:05:00Z")):
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["finishedAt"] = at
    words = last_words([replacement, evicted], attempt=2)
    assert words is not None
    assert words.step == 9
