"""data.format Auto: what the records are is found out, said, and kept with the prepared data."""

import logging
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer import tasks
from deepseek_trainer.contract.errors import DataError, IntegrityError
from deepseek_trainer.contract.names import ENV_RUN_ID, Paths
from deepseek_trainer.data.shards import MANIFEST, read_manifest
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import (
    CLAIM,
    a_config,
    open_prepared,
    prepare,
    questions,
    some_paths,
    texts,
    write_jsonl,
    write_text,
)

TALK = [{"from": "human", "value": "where?"}, {"from": "gpt", "value": "there"}]
SHAPES: list[tuple[dict[str, Any], str]] = [
    ({"text": "a text"}, "Text"),
    ({"text": "of both", "instruction": "where?", "input": "", "output": "there"}, "Instruction"),
    ({"text": "a text", "prompt": "", "response": None}, "Text"),
    ({"prompt": "where?", "response": "there"}, "Instruction"),
    ({"question": "where?", "answer": "there"}, "Instruction"),
    ({"conversations": TALK}, "Instruction"),
    ({"prompt": TALK[:1], "completion": TALK[1:]}, "Instruction"),
]


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    return some_paths(tmp_path)


def found(paths: Paths, **data: Any) -> str:
    """The format that Auto comes to."""
    preparer = tasks.preparer(a_config(format="Auto", **data))
    list(preparer.inputs(paths).records("train"))
    return str(preparer.config.data.format)


def refusal(paths: Paths, **data: Any) -> str:
    with pytest.raises(DataError) as error:
        found(paths, **data)
    return str(error.value)


@pytest.mark.parametrize(("record", "expected"), SHAPES)
def test_the_format_follows_from_the_records(
    paths: Paths, record: dict[str, Any], expected: str, caplog: pytest.LogCaptureFixture
) -> None:
    blank = [{"text": " "}] if expected == "Text" else []
    write_jsonl(paths, "a.jsonl", [*blank, record, record])
    place = {"claimName": CLAIM}
    with caplog.at_level(logging.INFO):
        assert found(paths, validation=place) == expected
    assert caplog.messages == [f"data.format Auto: {expected}, as a.jsonl:{1 + len(blank)} is"]


def test_text_files_are_text(paths: Paths) -> None:
    write_text(paths, "a.txt", "one")
    write_text(paths, "b.txt", "two")
    assert found(paths) == "Text"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a.jsonl": '{"text": "x"}\n{"prompt": "y", "response": "z"}\n'},
            "a.jsonl:2 is a record of Instruction, a.jsonl:1 one of Text: with data.format Auto all are of one (hint: ",
        ),
        (
            {"a.csv": "prompt,response\ny,z\n", "b.csv": "text\nx\n"},
            "b.csv:1 is a record of Text, a.csv:2 one of Instruction",
        ),
        ({"a.jsonl": '{"text": "x"}\n{"prompt": "y", "chosen": "z", "rejected": "w"}\n'}, "a.jsonl:2 is a record of"),
        (
            {"a.jsonl": '{"prompt": "secret", "chosen": "y", "rejected": "z"}\n'},
            "a.jsonl:1 is a record of Preference, which Auto is not (hint: set data.format: Preference)",
        ),
        ({"a.jsonl": '{"body": "secret"}\n'}, "a.jsonl:1: data.format Auto knows no record of these fields: body"),
    ],
)
def test_records_of_which_no_one_format_can_be_made_are_refused(
    paths: Paths, files: dict[str, str], message: str
) -> None:
    for name, content in files.items():
        write_text(paths, name, content)
    assert message in (told := refusal(paths, validation={"claimName": CLAIM}))
    assert "secret" not in told


def test_sources_of_different_formats_are_refused_by_both_places(paths: Paths) -> None:
    write_jsonl(paths, "a/x.jsonl", texts(3))
    write_jsonl(paths, "b/x.jsonl", questions(3))
    sources = [{"name": name, "claimName": CLAIM, "path": name} for name in ("a", "b")]
    assert "x.jsonl:1 is a record of Instruction, x.jsonl:1 one of Text" in refusal(paths, train=None, sources=sources)


def test_bad_records_are_skipped_where_the_job_says_so(paths: Paths) -> None:
    write_jsonl(paths, "a.jsonl", [{"body": "x"}, *questions(3), {"text": "x"}])
    assert found(paths, onBadRecord="Skip") == "Instruction"


def test_rows_are_those_of_the_format_and_the_manifest_names_it(paths: Paths) -> None:
    write_jsonl(paths, "a.jsonl", questions(6))
    rows = {}
    for run, name in (("uid-1", "Instruction"), ("uid-2", "Auto")):
        config = a_config(format=name, sequenceLength=64, validationFraction=0.3)
        vault = data_vault(config, paths)
        directory = prepare(config, paths, vault, run)
        rows[name] = [path.read_bytes() for path in sorted(directory.glob("*.rows"))]
        assert read_manifest(directory, vault).facts.get("data_format") == (
            None if name == "Instruction" else "Instruction"
        )
        opened = open_prepared(config, paths, vault, {ENV_RUN_ID: run})
        assert opened.prompts
    assert rows["Auto"] == rows["Instruction"]
    task: Any = tasks.of(config, paths, vault, directory)
    assert task._asks, "its prompts are questions"
    (directory / MANIFEST).write_bytes((directory / MANIFEST).read_bytes().replace(b'"Instruction"', b'"None"'))
    with pytest.raises(IntegrityError):
        tasks.of(config, paths, vault, directory)


@pytest.mark.parametrize(
    ("format_", "record", "shape"),
    [
        ("Text", {"messages": TALK}, "Instruction"),
        ("Text", {"prompt": "a", "chosen": "b", "rejected": "c"}, "Preference"),
        ("Instruction", {"text": "secret"}, "Text"),
        ("Preference", {"prompt": "a", "response": "secret"}, "Instruction"),
    ],
)
def test_a_record_of_another_format_is_refused_with_the_setting_that_reads_it(
    paths: Paths, format_: str, record: dict[str, Any], shape: str
) -> None:
    write_jsonl(paths, "a.jsonl", [record])
    with pytest.raises(DataError) as error:
        list(tasks.preparer(a_config(format=format_)).inputs(paths).records("train"))
    assert f"a.jsonl:1: the fields are those of data.format {shape}, and the job's is {format_}" in str(error.value)
    assert f"set data.format: {shape}" in str(error.value)
