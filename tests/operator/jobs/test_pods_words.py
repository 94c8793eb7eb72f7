"""Pods are not trusted: whatever they say, a pass ends in a plan that the API server can read, and acts in time."""

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_operator.jobs.decide import decide
from deepseek_operator.jobs.labels import ATTEMPT, COMPLETION_INDEX
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.status import JobStatus, Phase
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.plan import Plan
from deepseek_trainer.contract.foreign import MAX_LINE
from deepseek_trainer.contract.progress import Progress
from support.builders.operator import NOW, SETTINGS, a_job, a_pod, a_worker_job, terminated

RUNNING = JobStatus(phase=Phase.RUNNING, attempt=1, running_since=NOW, running_seconds=60)
HALF_A_LETTER = "\ud800"

TEXTS = st.text(st.characters(exclude_categories=()), max_size=80) | st.sampled_from(
    [
        HALF_A_LETTER,
        "\n\x1b[2JReady\r\u202e",
        "a" * 5000,
        "0099-01-01T00:00:00Z",
        "0001-01-01T00:00:00",
        "9999-12-31T23:59:59-14:00",
        "NaN",
    ]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([2**63, 10**400, -(10**400), sys.float_info.max, 1e11])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2))
CHECKPOINT = ("step", "time", "sizeBytes", "sealed", "keyId", "manifestDigest")
NAMES = ("stage", "step", "maxSteps", "epoch", "loss", "evalLoss", "learningRate", "tokensPerSecond", "etaSeconds",
         "restartCount", "rank", "reason", "message", "exitCode")  # fmt: skip


def some(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(names, VALUES))


ANSWERS = st.builds(lambda top, checkpoint: top | {"lastCheckpoint": checkpoint}, some(NAMES), some(CHECKPOINT))
LAST_WORDS = TEXTS | (ANSWERS | VALUES).map(json.dumps)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from texts_in(each)


def is_legible(text: str) -> bool:
    """Whether it neither moves a cursor nor floods a screen."""
    return all(line.isprintable() and len(line) <= MAX_LINE for line in text.split("\n"))


def planned(observed: Observed, **spec: Any) -> Plan:
    """A pass over a job that has run for a minute; what is written has gone through the JSON of the API server."""
    plan = decide(a_job(spec, RUNNING), observed, SETTINGS, NOW)
    written = json.dumps(plan.status.manifest(), ensure_ascii=False, allow_nan=False).encode()
    assert JobStatus.model_validate(json.loads(written)) == plan.status
    assert all(is_legible(text) for text in (*texts_in(json.loads(written)), *(n.message for n in plan.notices)))
    numbers = (value for part in json.loads(written).values() if isinstance(part, dict) for value in part.values())
    assert all(abs(number) < 2**63 for number in numbers if isinstance(number, int))
    return plan


def a_failed_pod(words: str) -> Manifest:
    return a_pod(0, "Failed", **terminated(1, words))


@given(ANSWERS)
def test_whatever_a_pod_answers_its_job_can_be_suspended_and_ends_in_time(answer: dict[str, Any]) -> None:
    observed = Observed(
        worker_jobs=(a_worker_job(),), pods=(a_pod(0), a_pod(1)), progress=Progress.model_validate(answer)
    )
    assert planned(observed).status.phase is Phase.RUNNING
    for spec in ({"suspend": True}, {"runPolicy": {"activeDeadlineSeconds": 60}}):
        assert [ref.name for ref in planned(observed, **spec).delete] == ["demo-a1"]


@given(LAST_WORDS)
def test_whatever_a_pod_says_at_its_end_its_failure_counts(words: str) -> None:
    observed = Observed(worker_jobs=(a_worker_job(conditions=("Failed",)),), pods=(a_failed_pod(words),))
    assert planned(observed).status.attempt == 2
    assert planned(observed, runPolicy={"maxRestarts": 0}).status.phase is Phase.FAILED
    assert planned(observed, suspend=True).delete


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param(
            Observed(
                worker_jobs=(a_worker_job(),),
                pods=(a_pod(0),),
                progress=Progress.model_validate({"stage": HALF_A_LETTER}),
            ),
            id="a-stage",
        ),
        pytest.param(
            Observed(
                worker_jobs=(a_worker_job(conditions=("Failed",)),),
                pods=(a_failed_pod(json.dumps({"message": HALF_A_LETTER})),),
            ),
            id="last-words",
        ),
        pytest.param(
            Observed(
                worker_jobs=(a_worker_job(conditions=("Failed",)),),
                pods=(a_failed_pod(json.dumps({"reason": HALF_A_LETTER})),),
            ),
            id="a-reason",
        ),
    ],
)
def test_half_a_letter_is_shown_as_a_question_mark(observed: Observed) -> None:
    status = planned(observed).status
    assert "?" in f"{status.trainer_status} {status.last_failure}"


def test_a_year_of_two_digits_is_written_with_four() -> None:
    words = {"lastCheckpoint": {"step": 1, "time": "0099-01-01T00:00:00Z"}}
    plan = planned(Observed(worker_jobs=(a_worker_job(),), pods=(a_pod(0),), progress=Progress.model_validate(words)))
    assert plan.status.manifest()["lastCheckpoint"]["time"] == "0099-01-01T00:00:00Z"


@pytest.mark.parametrize("digits", ["9" * 19, "9" * 5000, "²"])
def test_a_number_that_no_pod_can_have_is_none(digits: str) -> None:
    pod = a_failed_pod("boom")
    pod["metadata"]["labels"][ATTEMPT] = "1"
    pod["metadata"]["annotations"][COMPLETION_INDEX] = digits
    status = planned(Observed(worker_jobs=(a_worker_job(conditions=("Failed",)),), pods=(pod,))).status
    assert status.last_failure is not None
    assert status.last_failure.node is None
