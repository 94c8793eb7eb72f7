import operator
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("operator/deepseek_operator", "trainer_image/deepseek_trainer", "cli/dstj")
SOURCES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


def test_the_operator_directory_never_shadows_the_standard_library():
    assert not (ROOT / "operator" / "__init__.py").exists()
    assert Path(operator.__file__).name == "operator.py"


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_a_source_file_fits_in_one_reading(file: Path):
    assert len(file.read_text().splitlines()) <= 350, f"{file.name}: split it"


def test_the_operator_starts_without_the_generated_classes_that_its_image_leaves_out():
    left_out = ("kubernetes.client.api", "kubernetes.aio.client.api")
    without = f"import sys; sys.modules.update(dict.fromkeys({left_out}))"
    subprocess.run([sys.executable, "-c", f"{without}; import deepseek_operator.__main__"], check=True)


@pytest.mark.parametrize("word", ["TODO", "FIXME", "XXX"])
def test_no_source_file_promises_to_be_finished_later(word: str):
    assert [file.name for file in SOURCES if word in file.read_text()] == []


def test_every_target_of_the_makefile_is_listed_by_make_help():
    lines = (ROOT / "Makefile").read_text().splitlines()
    (phony,) = (line.removeprefix(".PHONY: ").split() for line in lines if line.startswith(".PHONY"))
    helped = {line.split(":")[0] for line in lines if "##" in line and not line.startswith(("\t", "#"))}
    assert set(phony) == helped
