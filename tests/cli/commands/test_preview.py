"""`dstj data preview`: what a job will learn of its records, before it does."""

import json

import pytest

from dstj.screen import learned
from support.builders.cli import job_file

ROWS = [{"prompt": f"Rule {i}?", "response": f"Rest {i}.", "topic": "lost"} for i in range(30)]


@pytest.fixture
def previewed(run_dstj, capsys, place):
    """Exit code, output and errors of `dstj data preview` of a job that trains on `records`."""

    def run(records, *arguments, **data):
        directory = place / "preview-data"
        directory.mkdir(exist_ok=True)
        (directory / "a.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
        spec = {"format": "Instruction", "train": {"claimName": "pairs"}, "sequenceLength": 64} | data
        code = run_dstj("data", "preview", job_file(place, data=spec), "--volume", f"pairs={directory}", *arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def test_learned_text_stands_between_marks(previewed):
    code, out, _ = previewed(ROWS, "--records", "1")
    assert code == 0
    first = out.partition("first: a.jsonl:")[2].splitlines()
    assert any(line.startswith("| Rule ") for line in first)
    assert "[[Rest " in "".join(first)
    assert "<|end|>]]" in "".join(first)


@pytest.mark.parametrize("most", [1, 2, 5])
def test_no_more_records_are_shown_than_asked_for(previewed, most):
    _, out, _ = previewed(ROWS, "--records", str(most))
    assert out.count(": a.jsonl:") == most
    assert f"{most} of your records at most" in out
    assert previewed(ROWS, "--records", str(most))[1] == out


def test_fields_that_are_not_used_are_named(previewed):
    _, out, _ = previewed(ROWS)
    unused = next(line for line in out.splitlines() if line.startswith("fields unused"))
    assert "topic (" in unused
    assert "prompt" not in unused


def test_what_is_cut_or_dropped_is_said(previewed):
    answer, question = [{"prompt": "Why?", "response": "so " * 300}], [{"prompt": "why " * 300, "response": "So."}]
    assert "; 1 of 1 records lost their end at data.sequenceLength=64" in previewed(ROWS + answer)[1]
    _, out, _ = previewed(ROWS + question)
    assert "; 1 of 1 records were dropped: each prompt alone fills data.sequenceLength=64" in out
    assert "dropped 1" in out


def test_control_characters_are_escaped(previewed):
    _, out, _ = previewed([{"prompt": "Rule?", "response": f"\x1b[2J {i}"} for i in range(5)])
    assert "\x1b" not in out
    assert "\\x1b[2J" in out


def test_bad_data_are_refused_as_the_run_refuses_them(previewed):
    code, _, err = previewed([{"ask": "x"}])
    assert code == 65
    assert "a.jsonl:1: no field" in err


def test_on_a_terminal_learned_text_is_coloured(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("FORCE_COLOR", "1")
    learned.show([("asked ", False), ("learned\nmore", True)])
    out = capsys.readouterr().out
    assert out.count("\x1b[1;32m") == 2
    assert learned.BEGIN not in out
