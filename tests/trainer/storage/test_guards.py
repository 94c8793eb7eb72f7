"""What guards keys and sealed files holds under `python -O`, which drops every assert."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import deepseek_trainer.storage
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.segments import Cipher
from deepseek_trainer.storage.vault import associated_data


def test_nothing_in_storage_is_guarded_by_an_assert() -> None:
    files = sorted(Path(deepseek_trainer.storage.__file__).parent.glob("*.py"))
    asserts = [
        f"{file.name}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Assert)
    ]
    assert len(files) > 10
    assert not asserts


def test_no_key_of_another_length_seals_under_python_o() -> None:
    code = "from deepseek_trainer.storage.keys import Key\nKey(bytes(16))"
    done = subprocess.run([sys.executable, "-O", "-c", code], capture_output=True, text=True, check=False)
    assert "ValueError: a key has 32 bytes, not 16" in done.stderr


def test_a_cipher_takes_no_other_key() -> None:
    with pytest.raises(ValueError, match="32 bytes, not 16"):
        Cipher(bytes(16), bytes(39), b"")


@pytest.mark.parametrize("part", ["job", "purpose", "name", "directory"])
def test_no_line_break_makes_a_sealed_file_pass_for_another_one(part: str) -> None:
    parts = {"job": "lab/demo", "purpose": "data", "name": "file", "directory": "abc"}
    with pytest.raises(IntegrityError, match="single lines"):
        associated_data(**(parts | {part: f"{parts[part]}\nx"}))
