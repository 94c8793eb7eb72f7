"""Flags and log lines of the operator."""

import json
import logging

import pytest

from deepseek_operator.__main__ import parse
from deepseek_operator.controller.logs import JsonFormatter


def test_namespaces_may_be_repeated() -> None:
    options, level = parse(["--namespace", "a", "--namespace", "b", "--leader-elect", "--operator-namespace", "ops"])
    assert options.namespaces == ("a", "b")
    assert (options.leader_elect, options.settings.operator_namespace, level) == (True, "ops", "INFO")


def test_the_wait_for_machines_is_a_setting() -> None:
    assert parse(["--all-namespaces"])[0].settings.placement_wait_s == 300
    assert parse(["--all-namespaces", "--placement-wait", "60"])[0].settings.placement_wait_s == 60


def test_all_namespaces_are_none_named() -> None:
    assert parse(["--all-namespaces"])[0].namespaces == ()


@pytest.mark.parametrize(
    "argv", [[], ["--namespace", "a", "--all-namespaces"], ["--all-namespaces", "--log-level", "LOUD"]]
)
def test_wrong_flags_are_refused(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(argv)
    assert refused.value.code == 2


def test_a_log_line_is_one_json_object_even_with_a_traceback() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord(
            "n", logging.WARNING, "f", 1, "job %s", ("ml/demo",), (ValueError, error, error.__traceback__)
        )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["level"], told["message"]) == ("warning", "job ml/demo")
    assert "two\nlines" in told["traceback"]
