"""What is sealed on the disk stays so: reading it leaves nothing anywhere."""

import json
import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.worker.vaults import data_vault
from support.builders.data import (
    RUN,
    RUN_ID,
    a_config,
    open_prepared,
    prepare,
    put_key,
    questions,
    some_paths,
    write_jsonl,
)
from support.faults.crashes import in_a_child

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
MAKES = frozenset({"os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.mkfifo", "os.memfd_create"})


def refuse_writing() -> None:
    """For the rest of this process: Python may make or open no file for writing, and no library may fill one."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in MAKES or (event == "open" and arguments[2] & WRITES):
            raise PermissionError(f"{event}{arguments}")

    sys.addaudithook(refuse)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def everything_in(config: TrainingConfig, paths: Paths) -> dict[str, Any]:
    """What a pass over all prepared data sees of them."""
    prepared = open_prepared(config, paths, data_vault(config, paths), RUN)
    tokens = [
        prepared.tokenizer.decode(rows.batch([row]).tokens_BT[0])
        for rows in (prepared.train, prepared.validation)
        for row in prepared.order.indices(3, 0, len(rows)) % len(rows)
    ]
    return {"rows": len(tokens), "text": "".join(tokens), "prompts": len(prepared.prompts)}


def read_by_a_child_that_may_not_write(config: TrainingConfig, paths: Paths) -> dict[str, Any]:
    """`everything_in`, or the error that it met."""
    reading, writing = os.pipe()

    def child() -> None:
        refuse_writing()
        try:
            content = everything_in(config, paths)
        except BaseException as error:
            content = {"error": repr(error)}
        os.write(writing, json.dumps(content).encode())

    in_a_child(child)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer: dict[str, Any] = json.loads(pipe.read())
    return answer


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    paths = some_paths(tmp_path)
    put_key(paths)
    write_jsonl(paths, "a.jsonl", questions(40))
    return paths


def test_a_pass_over_sealed_data_opens_no_file_for_writing_anywhere(paths: Paths) -> None:
    config = a_config(format="Instruction", sequenceLength=64, seal=True, curriculum={})
    prepare(config, paths, data_vault(config, paths), RUN_ID)
    content = read_by_a_child_that_may_not_write(config, paths)
    assert content == everything_in(config, paths)
    assert content["rows"] > 10
    assert "What is rule 7?" in content["text"]


@pytest.mark.parametrize("write", ["open", "library"])
def test_a_process_that_may_not_write_cannot(tmp_path: Path, write: str) -> None:
    """Else the test above proves nothing."""
    file = tmp_path / "file"
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT)

    def child() -> None:
        refuse_writing()
        if write == "library":
            os.write(descriptor, b"plain")
        else:
            (tmp_path / "other").write_bytes(b"plain")

    in_a_child(child)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file.read_bytes() == b""
