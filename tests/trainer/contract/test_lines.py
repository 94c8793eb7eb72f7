"""Each message is one line, printable and bounded: on a terminal, in a log, in an error, in a failure."""

import io
import json
import logging
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract import failure as contract
from deepseek_trainer.contract.errors import ConfigError, JobError
from deepseek_trainer.contract.foreign import MAX_LINE, legible, one_line
from deepseek_trainer.contract.lines import guard_logs, say
from deepseek_trainer.worker.failure import MAX_MESSAGE, Failure, tell

FORGED = "\n[2026-01-31 12:00:00] INFO: sealed\x1b[2K\r\u202e\u2028\x85\ud800"
foreign_text = st.text(st.characters(), max_size=200) | st.just(FORGED) | st.just("x" * 10_000_000)


@given(foreign_text)
def test_a_message_is_one_printable_line_of_bounded_length(text: str) -> None:
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= MAX_LINE
    assert one_line(line) == line
    assert line == text or not text.isprintable() or len(text) > MAX_LINE


def test_of_a_long_message_the_beginning_and_the_end_are_kept() -> None:
    line = one_line(f"data.jsonl:3: field {'x' * 10_000_000} is empty")
    assert line.startswith("data.jsonl:3: field xxx")
    assert line.endswith("xxx is empty")


@given(foreign_text)
def test_one_message_is_one_line_of_output(text: str) -> None:
    output = io.StringIO()
    say(text, file=output)
    assert output.getvalue() == one_line(text) + "\n"


@given(foreign_text, foreign_text)
def test_an_error_is_one_line_whatever_its_caller_put_into_it(problem: str, hint: str) -> None:
    error = ConfigError(f"bad {problem}", hint=hint)
    for words in (str(error), error.problem, error.hint, *error.args):
        assert words.isprintable()
        assert len(words) <= MAX_LINE + len(" (hint: )")


@given(foreign_text, st.sampled_from([ValueError, KeyError, OSError, JobError, MemoryError]))
def test_a_failure_forges_no_line_of_the_log_and_no_status(text: str, kind: type[Exception]) -> None:
    failure = Failure.of(kind(text))
    assert (
        len(failure.message) <= MAX_MESSAGE + len(" (hint: lower optimization.microBatchSize or data.sequence..)") * 2
    )
    assert all(line.isprintable() for line in failure.message.split("\n"))
    assert failure.message.count("\n") == 0, "it was never raised, so there is no traceback"


def test_a_failure_is_a_line_and_an_indented_one_for_each_of_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError(f"bad {FORGED}")
    except ValueError as error:
        tell(Failure.of(error, 3), "rank 3: ")
    first, *others = capsys.readouterr().err.removesuffix("\n").split("\n")
    assert first.startswith("rank 3: ValueError: ")
    assert all(line.startswith("    ") and line.isprintable() for line in others)
    assert "bad \\n[2026" in others[-1]


@given(foreign_text, foreign_text)
def test_a_termination_message_of_others_is_read_as_printable_lines(reason: str, message: str) -> None:
    text = json.dumps({"exitCode": 1, "reason": reason[:900], "message": message[:900]})
    for failure in (contract.Failure.read(text), contract.Failure.read(message[:900])):
        for words in (failure.reason, failure.message):
            assert all(line.isprintable() for line in words.split("\n"))


def test_lines_of_others_end_as_their_system_ends_them() -> None:
    assert legible("a\r\nb\nc\rd") == "a\nb\nc\\rd"


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """What a library logs through a handler of its own, once the logs are guarded."""
    output, before = io.StringIO(), logging.getLogRecordFactory()
    handler = logging.StreamHandler(output)
    logger = logging.getLogger("some.library")
    logger.addHandler(handler)
    logging.getLogger("py.warnings").addHandler(handler)
    guard_logs()
    yield output
    logging.captureWarnings(False)
    logging.setLogRecordFactory(before)
    logger.removeHandler(handler)
    logging.getLogger("py.warnings").removeHandler(handler)


def test_a_log_message_is_one_line_whoever_logs_it(log: io.StringIO) -> None:
    logging.getLogger("some.library").warning("odd name %s", FORGED)
    assert log.getvalue() == f"odd name {one_line(FORGED)}\n"


def test_a_warning_of_python_is_one_line(log: io.StringIO) -> None:
    warnings.warn(f"odd name {FORGED}", UserWarning, stacklevel=1)
    assert log.getvalue().count("\n") == 1
    assert "odd name \\n[2026" in log.getvalue()


@pytest.fixture
def heard() -> Iterator[io.StringIO]:
    """What a handler that takes every level hears of all loggers."""
    factory, root = logging.getLogRecordFactory(), logging.getLogger()
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root.addHandler(handler)
    guard_logs()
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        logging.setLogRecordFactory(factory)
        logging.captureWarnings(False)


@pytest.mark.parametrize(
    "advice",
    [
        "Failed to load gemm_4bit_forward: %s. Please make sure you already `pip install kernels`",
        "The fast path is not available because one of the required library is not installed. Falling back to torch.",
        "To install follow https://github.com/fla-org/flash-linear-attention#installation",
        "TensorFlow installation not found - running with reduced feature set.",
        "Please install flash-attn to use it",
        "Consider installing `xformers`",
        "try `conda install -c x y`",
    ],
)
def test_no_library_tells_people_what_to_install(heard: io.StringIO, advice: str) -> None:
    logging.getLogger("library").warning(advice)
    assert heard.getvalue() == ""


def test_what_else_a_library_warns_of_is_heard_and_so_is_what_we_say(heard: io.StringIO) -> None:
    old = "The NVIDIA driver on your system is too old: update it by downloading and installing a new version"
    logging.getLogger("drivers").warning(old)
    logging.getLogger("library").error("please install x")
    logging.getLogger("deepseek_trainer.data").warning("pip install x")
    logging.getLogger("library").warning("50 %% done, %s", "install nothing")
    assert heard.getvalue().splitlines() == [old, "please install x", "pip install x", "50 % done, install nothing"]
