import math

import pytest

from deepseek_trainer.evaluation.classification import classification

# Rows: prompts; columns: log-probabilities of the labels.
SCORES = [[-1.0, -2.0], [-2.0, -1.0], [-1.0, -3.0], [-3.0, -2.0]]


def test_two_labels_are_measured_as_by_hand():
    """Log-odds of yes: -1, 1, -0.5, 1; of the 4 pairs of a yes and a no, 2 are in order and 1 is a tie."""
    found = classification(["no", "no", "yes", "yes"], [SCORES[0], SCORES[1], [-1.0, -1.5], SCORES[3]], ["no", "yes"])
    assert found["confusion"] == [[1, 1], [1, 1]]
    assert (found["total"], found["accuracy"], found["macroF1"]) == (4, 0.5, 0.5)
    assert found["perClass"] == [{"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}] * 2
    assert found["rocAuc"] == 2.5 / 4


def test_the_area_counts_pairs_that_are_in_order():
    """Log-odds of yes: -1, 1, -2, 1 with truth no, yes, no, no: yes beats two and ties with one of three."""
    found = classification(["no", "yes", "no", "no"], SCORES, ["no", "yes"])
    assert found["rocAuc"] == pytest.approx(2.5 / 3)


def test_certain_probabilities_still_have_an_order():
    """Both probabilities of yes round to 1; the likelier one is right."""
    found = classification(["no", "yes"], [[-100.0, 0.0], [-200.0, 0.0]], ["no", "yes"])
    assert found["rocAuc"] == 1.0


def test_three_labels_are_measured_as_by_hand():
    scores = [[-2, -5, -9], [-9, -1, -9], [-1, -5, -9], [-9, -9, -1]]
    found = classification(["a", "b", "b", "c"], scores, ["a", "b", "c"])
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert [row["precision"] for row in found["perClass"]] == [0.5, 1.0, 1.0]
    assert [row["recall"] for row in found["perClass"]] == [1.0, 0.5, 1.0]
    assert [row["support"] for row in found["perClass"]] == [1, 2, 1]
    assert found["macroF1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    areas = (2 / 3, 3 / 4, 1.0)  # the third prompt looks more like a, and less like b, than the first
    assert found["rocAuc"] == pytest.approx(sum(areas) / 3)


def test_a_label_that_never_occurs_is_in_the_tables_and_in_no_mean():
    found = classification(["a", "b"], [[-1, -2, -9], [-2, -1, -9]], ["a", "b", "c"])
    assert (found["accuracy"], found["macroF1"], found["rocAuc"]) == (1.0, 1.0, 1.0)
    assert found["perClass"][2] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert found["confusion"][2] == [0, 0, 0]


def test_where_only_one_label_occurs_there_is_no_area():
    for labels, scores in ((["a", "b"], SCORES), (["a", "b", "c"], [[*row, -4.0] for row in SCORES])):
        assert "rocAuc" not in classification(["a"] * 4, scores, labels)


def test_a_model_that_gives_no_numbers_is_measured_without_an_area():
    found = classification(["a", "b"], [[math.nan, math.nan], [-1.0, -math.inf]], ["a", "b"])
    assert "rocAuc" not in found
    assert found["accuracy"] == 0.5
