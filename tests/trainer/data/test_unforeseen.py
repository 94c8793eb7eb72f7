"""What nobody foresaw of data is a refusal that names the place; what the machine does passes as it is."""

import errno
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.volume import VolumePath
from deepseek_trainer.data.reading import Reading
from deepseek_trainer.data.sources import Source
from deepseek_trainer.tasks.language.reading import reading
from deepseek_trainer.worker.failure import Failure
from support.builders.data import CLAIM, a_data_spec, some_paths, write_text

SECRET = "p4ss phrase"
UNFORESEEN = (
    RuntimeError(f"mat1 and mat2 of {SECRET}"),
    KeyError(SECRET),
    ZeroDivisionError(),
    UnicodeDecodeError("utf-8", SECRET.encode(), 0, 1, "invalid start byte"),
    RecursionError("maximum recursion depth exceeded"),
    AttributeError(SECRET),
    StopIteration(),
    AssertionError(SECRET),
    pa.ArrowNotImplementedError(SECRET),
    OSError(SECRET),  # without a number: of a library, not of the operating system
)
AcceleratorError = type("AcceleratorError", (RuntimeError,), {})
OF_MACHINE = (
    MemoryError(),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle"),
    AcceleratorError("device-side assert"),
    RuntimeError("CUDA error: unspecified launch failure"),
)
PLACES = ("reader", "load", "record")


@pytest.fixture
def paths(tmp_path):
    paths = some_paths(tmp_path)
    write_text(paths, "a.jsonl", "")
    return paths


def raising(error, where, good=1):
    """A reading of which one part raises `error`, after `good` records."""

    def raises(*_):
        raise error

    def reader(file, name, columns):
        for line in range(1, good + 1):
            yield line, lambda: {"text": "good"}
        if where == "reader":
            raise error
        yield good + 1, raises if where == "load" else lambda: {"text": "bad"}

    def record(value, name, line):
        return raises() if value["text"] == "bad" else made(value, name, line)

    made = reading(a_data_spec()).record
    return Reading({".jsonl": reader}, lambda names, _: names, record, lambda _: "")


def records(paths, found, *, is_private=False, skipped=lambda _: None, **data):
    place = VolumePath(claim_name=CLAIM, path="")
    return [*Source.find(place, a_data_spec(**data), paths, found, is_private=is_private).records(skipped)]


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_an_error_that_nobody_foresaw_names_the_place_and_is_not_retried(paths, where, error):
    with pytest.raises(DataError) as caught:
        records(paths, raising(error, where))
    place = "a.jsonl" if where == "reader" else "a.jsonl:2"
    assert str(caught.value).startswith(f"{place} cannot be read: ")
    assert (Failure.of(caught.value).exit_code, "hint" in str(caught.value)) == (65, True)


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda error: type(error).__name__)
def test_it_says_nothing_of_private_data(paths, where, error):
    with pytest.raises(DataError) as caught:
        records(paths, raising(error, where), is_private=True)
    assert SECRET not in str(caught.value) + Failure.of(caught.value).message
    assert "cannot be read" in str(caught.value)


@pytest.mark.parametrize("where", PLACES)
def test_it_is_a_bad_record_where_the_job_skips_those(paths, where):
    skipped = []
    found = records(paths, raising(KeyError("x"), where), skipped=skipped.append, on_bad_record="Skip")
    assert (len(found), [str(each).split(" ")[0] for each in skipped]) == (
        1,
        ["a.jsonl" if where == "reader" else "a.jsonl:2"],
    )


@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("error", OF_MACHINE, ids=str)
def test_an_error_of_the_machine_stays_what_it_is(paths, where, error):
    with pytest.raises(type(error)) as caught:
        records(paths, raising(error, where), on_bad_record="Skip")
    assert caught.value is error


def test_a_file_name_that_is_no_utf_8_is_refused(paths):
    with open(os.fsencode(paths.claim(CLAIM)) + b"/b\xff.jsonl", "w") as file:  # noqa: PTH123
        file.write('{"text": "good"}\n')
    place = VolumePath(claim_name=CLAIM, path="")
    with pytest.raises(DataError, match="UTF-8"):
        Source.find(place, a_data_spec(), paths, reading(a_data_spec()))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("prompt", "response", "input", "messages", "tools", "tool_calls", "history", "chosen", "weight", "x")
ODD = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


READ = "read"


def told(paths, kind):
    """What a refusal of the records says, READ if there is none."""
    try:
        records(paths, reading(a_data_spec(format=kind)), format=kind)
    except DataError as error:
        return str(error)
    return READ


@ODD
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, min_size=1), st.sampled_from(["Instruction", "Preference"]))
def test_any_json_becomes_records_or_a_refusal(paths, value, kind):
    write_text(paths, "a.jsonl", json.dumps(value) + "\n")
    assert "cannot be read" not in told(paths, kind)  # each rule says what it is


@pytest.mark.parametrize("depth", [150, 900, 5000, 200_000])
def test_nesting_without_an_end_is_refused(paths, depth):
    deep = '{"a":' * depth + "1" + "}" * depth
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "DEEP"}}]}
    said = json.dumps({"messages": [{"role": "user", "content": "x"}, call]}).replace('"DEEP"', deep)
    write_text(paths, "a.jsonl", said + "\n")
    assert told(paths, "Instruction").startswith(("a.jsonl:1", READ))


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1], pa.timestamp("us", tz="Not/AZone")),
        pa.array([2**52], pa.timestamp("s")),
        pa.array([10**12], pa.duration("s")),
        pa.array([b"\xff"], pa.binary()),
        pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
        pa.array([None], pa.null()),
    ],
    ids=lambda array: str(array.type),
)
def test_columns_of_odd_kinds_are_refused(paths, array):
    (paths.claim(CLAIM) / "a.jsonl").unlink()
    pq.write_table(pa.table({"text": array}), paths.claim(CLAIM) / "a.parquet")
    with pytest.raises(DataError) as caught:
        records(paths, reading(a_data_spec()))
    assert str(caught.value).startswith("a.parquet:1")
