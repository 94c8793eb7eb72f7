"""The edge of `dstj`: help, arguments, exit codes, errors in one line."""

import argparse
import importlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest

import dstj.commands.validate
from deepseek_trainer.contract.errors import (
    ConfigError,
    DataError,
    IntegrityError,
    JobError,
    NotFiniteError,
    TryAgainError,
)
from deepseek_trainer.contract.names import ExitCode
from dstj.arguments import EXIT_CODES, parser
from dstj.cli import main

SLOW_OF_PYTHON = {"asyncio", "email", "http", "ssl", "tempfile", "unittest", "xml"}


def _commands(
    root: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """Every command with the words that call it."""
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield from _commands(command, (*words, name))
    if root.get_default("target"):
        yield words, root


COMMANDS = dict(_commands(parser()))


@pytest.mark.parametrize("words", [(), ("run",), ("keys", "rotate")], ids=lambda words: " ".join(("dstj", *words)))
def test_help_imports_no_package_but_dstj_and_nothing_slow_of_python(words):
    program = f"""
import sys
before = {{*sys.modules}}
from dstj.cli import main
assert main({[*words, "--help"]}) == 0
imported = {{name.partition(".")[0] for name in {{*sys.modules}} - before}}
assert imported - sys.stdlib_module_names == {{"dstj"}}, imported
assert not imported & {SLOW_OF_PYTHON}, imported
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)


def test_help_documents_every_exit_code(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {code:<4} {meaning}" in text for code, meaning in EXIT_CODES)
    assert set(ExitCode) <= {code for code, _ in EXIT_CODES}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_names_a_function_that_exists(words):
    module, _, function = COMMANDS[words].get_default("target").partition(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_and_each_of_its_arguments_has_a_help_text(words):
    assert COMMANDS[words].description
    assert all(action.help for action in COMMANDS[words]._actions)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        ([], "arguments are required: COMMAND"),
        (["run"], "arguments are required: FILE"),
        (["render", "x.yaml", "--attempt", "0"], "'0' is not a whole number of at least 1"),
        (["logs", "tiny", "--node", "-1"], "--node"),
        (["logs", "tiny", "--node", "x"], "'x' is not a whole number of at least 0"),
    ],
)
def test_wrong_arguments_are_reported_in_two_lines_with_code_2(capsys, arguments, problem):
    assert main(arguments) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("dstj: error: ")
    assert problem in error
    assert hint.startswith("dstj: hint: dstj")


@pytest.mark.parametrize(
    ("raised", "code"),
    [(ConfigError, 64), (DataError, 65), (NotFiniteError, 70), (TryAgainError, 75), (IntegrityError, 77)],
)
def test_every_error_for_people_has_its_exit_code_and_hint(monkeypatch, capsys, raised, code):
    def fail(_: object) -> int:
        raise raised("this is wrong", hint="do that")

    monkeypatch.setattr(dstj.commands.validate, "validate", fail)
    assert main(["validate", "x.yaml"]) == code
    assert capsys.readouterr().err.splitlines() == ["dstj: error: this is wrong", "dstj: hint: do that"]


def test_several_problems_are_all_reported(monkeypatch, capsys):
    def fail(_: object) -> int:
        raise ExceptionGroup("file", [ConfigError("a is wrong"), ConfigError("b is wrong")])

    monkeypatch.setattr(dstj.commands.validate, "validate", fail)
    assert main(["validate", "x.yaml"]) == 64
    assert capsys.readouterr().err.splitlines() == ["dstj: error: a is wrong", "dstj: error: b is wrong"]


def test_failure_of_the_machine_names_the_file_and_can_be_tried_again(monkeypatch, capsys):
    def fail(_: object) -> int:
        raise PermissionError(13, "Permission denied", "/state/tiny")

    monkeypatch.setattr(dstj.commands.validate, "validate", fail)
    assert main(["validate", "x.yaml"]) == 75
    assert capsys.readouterr().err.startswith("dstj: error: /state/tiny: permission denied\n")


def test_bug_is_not_hidden(monkeypatch):
    def fail(_: object) -> int:
        raise KeyError("oops")

    monkeypatch.setattr(dstj.commands.validate, "validate", fail)
    with pytest.raises(KeyError):
        main(["validate", "x.yaml"])


def test_ctrl_c_is_quiet(monkeypatch, capsys):
    def fail(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(dstj.commands.validate, "validate", fail)
    assert main(["validate", "x.yaml"]) == 130
    assert capsys.readouterr().err == ""


def test_reader_that_goes_away_is_not_an_error():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "dstj.cli", "doctor", "--digest", __file__],
        check=False,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["doctor", "--digest", __file__]])
def test_output_that_finds_no_room_is_one_error_with_code_75(arguments, unbuffered):
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-m", "dstj.cli", *arguments],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
        )
    assert (done.returncode, done.stderr.splitlines()) == (
        75,
        [
            "dstj: error: cannot write: no space left on device",
            "dstj: hint: make room and give the same command again: nothing is lost",
        ],
    )


def test_output_that_was_closed_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m dstj.cli doctor --digest {shlex.quote(__file__)} >&-"
    done = subprocess.run(["sh", "-c", command], check=False, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_every_job_error_has_a_documented_exit_code():
    assert {error.code for error in JobError.__subclasses__()} <= {code for code, _ in EXIT_CODES}
