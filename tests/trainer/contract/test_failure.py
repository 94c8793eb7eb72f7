"""The JSON of a failure: whole within what a kubelet keeps, and read from whatever a termination log holds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.failure import MAX_BYTES, Failure
from deepseek_trainer.contract.names import ExitCode

any_text = st.text(st.characters(), max_size=2048)  # lone surrogates too: file names have them


def test_the_termination_message_is_camel_case_json():
    message = json.loads(Failure(77, "Integrity", "bad tag in Größe.jsonl", 2).to_json())
    assert message == {"rank": 2, "exitCode": 77, "reason": "Integrity", "message": "bad tag in Größe.jsonl"}


def test_a_failure_is_read_as_it_was_written_whatever_stands_beside_it():
    failure = Failure(75, "Storage", "disk full", 3)
    assert Failure.read(failure.to_json({"step": 13, "stage": "training"}).decode()) == failure


def test_a_stopped_worker_tells_its_last_progress_too():
    written = json.loads(Failure(ExitCode.STOPPED, "Stopped", "saved").to_json({"step": 13}))
    assert written == {"step": 13, "exitCode": 143, "reason": "Stopped", "message": "saved"}


@given(message=st.one_of(any_text, st.text("\x01\U0001f600", min_size=1024, max_size=2048)))
def test_a_termination_message_is_whole_json_of_as_many_bytes_as_the_kubelet_keeps(message: str):
    encoded = Failure(1, "ValueError", message, 0).to_json()
    assert len(encoded) <= MAX_BYTES
    kept = json.loads(encoded)["message"]
    assert message.encode(errors="replace").decode().startswith(kept)
    assert len(encoded) > MAX_BYTES - 50 or len(kept) == len(message), "no more is cut than must be"


@pytest.mark.parametrize("text", ["Killed", "[1]", "{", "[" * 4000, ""])
def test_what_is_no_json_object_is_the_message(text: str):
    assert Failure.read(text) == Failure(ExitCode.INTERNAL, "", text)


@pytest.mark.parametrize("code", ["143", -1, None, 10**400, float("nan"), True])
def test_a_code_that_no_process_can_have_is_that_of_a_bug(code: object):
    assert Failure.read(json.dumps({"exitCode": code, "rank": code})) == Failure(ExitCode.INTERNAL, "", "")
