"""A log line of the operator is one JSON object, whatever others put into its message."""

import json
import logging

from hypothesis import given
from hypothesis import strategies as st

from deepseek_operator.controller.logs import MAX_TRACEBACK, JsonFormatter
from deepseek_trainer.contract.foreign import MAX_LINE


def logged(text: str, error: Exception | None = None) -> str:
    exc_info = (type(error), error, error.__traceback__) if error else None
    record = logging.LogRecord("operator", logging.WARNING, __file__, 1, "the API server says %s", (text,), exc_info)
    return JsonFormatter().format(record)


@given(st.text(st.characters(), max_size=200) | st.just("\n\x1b[2J") | st.just("x" * 10_000_000))
def test_a_message_is_one_line_without_control_characters(text: str) -> None:
    line = logged(text)
    assert line.isprintable()
    message = json.loads(line)["message"]
    assert message.isprintable()
    assert len(message) <= MAX_LINE


def test_a_traceback_is_part_of_the_line_and_bounded() -> None:
    line = logged("no", ValueError("x\n" * 10_000_000))
    assert "\n" not in line
    assert len(json.loads(line)["traceback"]) <= MAX_TRACEBACK
