"""Documents and text of others: what is read of them, and how they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.foreign import parsed, shown


@given(st.text() | st.binary() | st.lists(st.text()))
def test_what_is_shown_is_one_printable_line_of_bounded_length(value: object) -> None:
    text = shown(value)
    assert text.isprintable()
    assert len(text) <= 60


@pytest.mark.parametrize("hidden", ["a\nb", "\x1b[2J", "\r", "\u202e", "\ud800", "\x07", "\u2028", "\u200b"])
def test_nothing_that_moves_a_cursor_or_hides_text_is_shown(hidden: str) -> None:
    assert hidden not in shown(f"name{hidden}")


def test_a_long_text_is_cut() -> None:
    assert shown("x" * 10_000_000) == f"'{'x' * 56}..."


def test_of_a_value_no_more_is_looked_at_than_is_shown() -> None:
    holds_itself: dict[str, object] = {}
    holds_itself["x"] = holds_itself
    doubled: list[object] = ["x"]
    for _ in range(60):
        doubled = [doubled, doubled]
    assert shown(holds_itself).startswith("{'x': {'x': {")
    assert shown(doubled) == f"{'[' * 57}..."
    assert shown({"a": [1, None], 2: {}, "b": []}) == "{'a': [1, None], 2: {}, 'b': []}"


def test_a_number_of_any_length_is_shown() -> None:
    assert shown([10**9000]) == "[a number of 29898 bits]"
    assert len(shown(10**1000)) == 60


def test_a_document_is_parsed() -> None:
    assert parsed(b'{"a": [1, 2.5, null, "b"]}') == {"a": [1, 2.5, None, "b"]}


@pytest.mark.parametrize("document", ["NaN", "[Infinity]", '{"a": -Infinity}', "[" * 100_000, "", '{"a": 1', "[1,]"])
def test_what_is_not_json_or_nested_without_bound_is_refused(document: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parsed(document)
