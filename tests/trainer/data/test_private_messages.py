"""What an error says of bad data: where they stand in a sealed job, what stands there only in others."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer import tasks
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import DataError
from deepseek_trainer.contract.foreign import MAX_LINE
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.data.inputs import TRAIN, Inputs
from support.builders.data import CLAIM, a_config, some_paths, write_jsonl, write_text
from support.builders.images import a_picture, an_image_job, encoded, write_file

SECRET = "p4ss phrase"
FORGED = f"{SECRET}\n[2026-01-31 12:00:00] INFO: sealed\x1b[2J"
APART = {"validation": {"claimName": CLAIM, "path": "train"}, "validationFraction": None}
SEALED = {"encryption": {"keyRef": {"secretName": "keys"}}, "interval": {"steps": 2}}

WORDS = st.sampled_from(
    [
        SECRET,
        FORGED,
        f"{SECRET}x" * 1000,
        "text",
        "prompt",
        "response",
        "messages",
        "role",
        "content",
        "user",
        "kind",
        "from",
        "value",
        "human",
        "input",
        "system",
        "history",
        "tools",
        "weight",
        "name",
        "chosen",
        "rejected",
        "label",
        "reasoning",
        "tool_calls",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
)
FORMATS: list[dict[str, Any]] = [
    {"format": "Text"},
    {"format": "Instruction"},
    {"format": "Preference"},
    {"format": "Auto"},
    {"format": "Instruction", "balanceBy": "kind"},
]


def errors(paths: Paths, config: TrainingConfig) -> Iterator[DataError]:
    """All that preparation says against the records."""
    try:
        inputs = tasks.preparer(config).inputs(paths)
        skipped: list[DataError] = []
        for _ in inputs.records(TRAIN, "", skipped.append):
            pass
        yield from skipped
    except DataError as error:
        yield error


def spoken(paths: Paths, config: TrainingConfig) -> str:
    return "\n".join(str(error) for error in errors(paths, config))


@given(st.lists(VALUES, min_size=1, max_size=4), st.sampled_from(FORMATS), st.sampled_from(["Fail", "Skip"]))
def test_no_error_of_a_sealed_job_quotes_a_record(values: list[Any], how: dict[str, Any], on_bad: str) -> None:
    with tempfile.TemporaryDirectory() as root:
        paths = some_paths(Path(root))
        write_jsonl(paths, "a.jsonl", values)
        write_text(paths, "b.jsonl", f'{{"text": "{SECRET}", {SECRET}: 1}}\n{{"a": "\\ud800{SECRET}"}}\n')
        for seal in (True, False):
            config = a_config(seal=seal, **how, onBadRecord=on_bad, validation={"claimName": CLAIM})
            for error in errors(paths, config):
                assert str(error).isprintable()
                assert len(str(error)) <= MAX_LINE
                assert not seal or SECRET not in str(error)


@pytest.mark.parametrize(
    ("name", "content", "sealed", "clear"),
    [
        ("a.jsonl", f'{{"id": 1, "txt": "x", "{SECRET}": 2}}',
         "a.jsonl:1: no field 'text' among 3, did you mean field 2",
         f"a.jsonl:1: no field 'text', did you mean 'txt'; it has: id, txt, {SECRET}"),
        ("a.csv", f"id,{SECRET}\n1,2\n", "a.csv:1: no field 'text' among 2", f"it has: id, {SECRET}"),
    ],
)  # fmt: skip
def test_a_sealed_job_counts_the_fields_that_another_job_names(
    tmp_path: Path, name: str, content: str, sealed: str, clear: str
) -> None:
    paths = some_paths(tmp_path)
    write_text(paths, name, content)
    assert sealed in (told := spoken(paths, a_config(seal=True)))
    assert SECRET not in told
    assert clear in spoken(paths, a_config())


def test_a_sealed_job_counts_the_columns_of_a_table(tmp_path: Path) -> None:
    paths = some_paths(tmp_path)
    pq.write_table(pa.table({FORGED: ["x"], "txt": ["y"]}), write_text(paths, "a.parquet", ""))
    assert "a.parquet: no field 'text' among 2, did you mean field 2" in spoken(paths, a_config(seal=True))


def test_a_message_of_a_conversation_is_not_quoted(tmp_path: Path) -> None:
    paths = some_paths(tmp_path)
    write_jsonl(paths, "a.jsonl", [{"messages": [{"role": "user", SECRET: "x"}]}])
    told = spoken(paths, a_config(seal=True, format="Instruction"))
    assert "a.jsonl:1: message 1: no field 'content' among 2" in told
    assert SECRET not in told


def test_a_field_name_of_ten_megabytes_makes_a_short_message(tmp_path: Path) -> None:
    paths = some_paths(tmp_path)
    write_text(paths, "a.jsonl", json.dumps({"x" * 10_000_000: 1}) + "\n")
    for seal in (True, False):
        assert len(spoken(paths, a_config(seal=seal))) < 300


def test_a_file_name_is_one_line_of_a_message(tmp_path: Path) -> None:
    paths = some_paths(tmp_path)
    write_text(paths, "a\n[INFO] sealed\x1b[2J.jsonl", "no json\n")
    assert "a\\n[INFO] sealed\\x1b[2J.jsonl:1:1: not JSON" in spoken(paths, a_config())


def test_a_damaged_picture_of_a_sealed_job_is_only_named(tmp_path: Path) -> None:
    paths = some_paths(tmp_path)
    write_file(paths, "train/dark/a.png", encoded(a_picture(1))[:-60])
    for checkpoint, quotes in ((SEALED, False), (None, True)):
        preparer = tasks.preparer(config := an_image_job(data=APART, checkpoint=checkpoint))
        (picture_read,) = Inputs.find(config, paths, preparer.reading).train[""].records()
        preparer.classes = (picture_read.label,)
        with pytest.raises(DataError, match=r"dark/a.png is damaged") as refused:
            [*preparer.maker("train", fills_row=False).rows([picture_read])]
        assert (refused.value.problem != "dark/a.png is damaged") is quotes
