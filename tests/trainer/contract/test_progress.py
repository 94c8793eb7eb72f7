"""The JSON of a run's progress: the trainer writes it, and it is read from a process that may answer anything."""

import json

import pytest

from deepseek_trainer.contract.progress import Checkpoint, Progress


def test_progress_is_read_as_it_was_written():
    progress = Progress(stage="training", step=3, eval_loss=2.5, last_checkpoint=Checkpoint(step=2, sealed=True))
    assert Progress.read(progress.to_json()) == progress


def test_only_what_is_known_is_written_and_what_json_cannot_hold_is_null():
    progress = Progress.model_validate({"step": 3, "evalLoss": float("nan")})
    assert json.loads(progress.to_json()) == {"step": 3, "evalLoss": None}


@pytest.mark.parametrize(
    "value",
    ["3", True, -1, [3], {}, None, 10**400, pytest.param(float("nan"), id="nan"), pytest.param("[" * 5000, id="bomb")],
)
def test_a_value_of_the_wrong_type_or_size_is_none_and_spoils_no_other(value: object):
    progress = Progress.model_validate({"step": value, "etaSeconds": 77.9})
    assert (progress.step, progress.eta_seconds) == (None, 77)


def test_half_a_letter_is_a_question_mark():
    assert Progress.model_validate({"stage": "\ud800"}).stage == "?"


@pytest.mark.parametrize("odd", [{"step": "2"}, {"time": 5}, {"keyId": []}, {"sealed": "perhaps"}, {"sizeBytes": 1}])
def test_a_checkpoint_is_read_as_a_whole_or_not_at_all(odd: dict[str, object]):
    whole = {"step": 2, "time": "2026-01-02T03:00:00Z"} if "sizeBytes" not in odd else {}
    assert Progress.model_validate({"step": 9, "lastCheckpoint": whole | odd}) == Progress(step=9, last_checkpoint=None)


@pytest.mark.parametrize("content", [b"", b"\0\xff", b"[1]", b"null", b"{}", b"[" * 5000])
def test_what_is_no_json_object_is_no_progress(content: bytes):
    assert Progress.read(content) is None
