import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.documents import finite, json_text
from deepseek_trainer.contract.foreign import parsed

NUMBERS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TREES = st.recursive(
    NUMBERS, lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(TREES)
def test_any_value_is_written_as_json_that_a_strict_reader_takes(value):
    text = json_text(value)
    assert json.loads(text) == json.loads(json.dumps(finite(value)))
    if text.isascii() and "\\ud" not in text:  # half a letter is JSON, too, and refused by the strict reader
        parsed(text)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_null_wherever_it_stands(number):
    assert json_text({"a": [number, {"b": (number, 1.5)}]}) == '{"a": [null, {"b": [null, 1.5]}]}'


def test_options_hold_in_both_cases():
    assert json_text({"b": math.nan, "a": "é"}, sort_keys=True, ensure_ascii=False) == '{"a": "é", "b": null}'


def test_a_value_that_holds_itself_is_refused_as_by_json():
    value = [1.5]
    value.append(value)
    with pytest.raises(ValueError, match="Circular reference"):
        json_text(value)
