"""What a run says of itself: whether it improved its model, why it ended, and which records it left out."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepseek_trainer.contract.findings import completeness, early_stop, findings, improvement
from deepseek_trainer.contract.progress import Progress, RecordCounts

LOSS = st.floats(0, 1e9, exclude_min=True)


@given(LOSS, LOSS)
def test_a_loss_that_ends_below_its_start_improved_and_any_other_did_not(before: float, after: float) -> None:
    found = improvement(before, after)
    assert found.status == str(after < before)
    assert found.is_notable is (after >= before)
    assert found.reason == ("LossFell" if after < before else "LossRose" if after > before else "LossUnchanged")


@given(LOSS, LOSS)
def test_two_losses_that_differ_are_told_in_numbers_that_differ(before: float, after: float) -> None:
    assume(before != after)
    _, _, way = improvement(before, after).message.partition(" from ")
    first, second = way.partition(";")[0].partition(":")[0].split(" to ")
    assert first != second


@pytest.mark.parametrize(("before", "after"), [(None, 1.0), (1.0, None), (None, None)])
def test_what_was_not_measured_is_unknown(before: float | None, after: float | None) -> None:
    found = improvement(before, after)
    assert (found.status, found.reason, found.is_notable) == ("Unknown", "NotMeasured", False)


def test_an_early_stop_names_the_step_the_plan_and_how_often_it_waited() -> None:
    assert early_stop(4, 30, 1).message == ("stopped at step 4 of 30: validation loss has not fallen for 1 evaluation")
    assert early_stop(4, None, 3).message.endswith("step 4: validation loss has not fallen for 3 evaluations")


@given(st.builds(RecordCounts, records=st.just(100), dropped=st.integers(0, 9), cut=st.integers(0, 9)))
def test_data_are_complete_only_where_nothing_was_left_out(counts: RecordCounts) -> None:
    found = completeness(counts)
    assert found.status == str(not (counts.dropped or counts.cut))
    for number, word in ((counts.dropped, "dropped"), (counts.cut, "cut")):
        assert (f"{number} {word}" in found.message) is bool(number)


def test_fields_that_are_not_used_are_named_with_their_counts_unless_they_are_private() -> None:
    open_ = RecordCounts(records=9, unused_fields=7, unused={"system": 9, "history": 2})
    assert completeness(open_).message == "of 9 records fields not used: 'system' (9), 'history' (2), 5 more"
    assert completeness(open_).reason == "FieldsUnused"
    assert completeness(RecordCounts(records=9, unused_fields=2)).message == "of 9 records 2 fields not used"


def test_a_run_tells_nothing_that_it_does_not_know_yet() -> None:
    assert list(findings(Progress(stage="training", step=3, max_steps=9, initial_eval_loss=2.0))) == []


def test_a_run_that_is_done_without_an_evaluation_is_unknown() -> None:
    assert [found.reason for found in findings(Progress(stage="done", step=3))] == ["NotMeasured"]


@pytest.mark.parametrize("odd", [{"records": "9"}, {"records": 9, "cut": []}, 7, math.nan, {"dropped": 3}])
def test_counts_of_records_are_read_as_a_whole_or_not_at_all(odd: object) -> None:
    assert Progress.model_validate({"step": 1, "records": odd}) == Progress(step=1, records=None)


def test_names_of_unused_fields_are_few_and_short() -> None:
    names = {f"{i}{'x' * 500}": 1 for i in range(50)}
    read = Progress.model_validate({"records": {"records": 9, "unusedFields": 50, "unused": names}})
    assert read.records is not None
    assert len(read.to_json()) < 600
