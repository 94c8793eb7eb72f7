"""DeepSpeed's ZeRO on two real ranks, through its own save and load, in sealed files."""

from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.contract.errors import ConfigError
from support.ranks.gloo import on_ranks
from support.ranks.zero_checkpoint_stories import STEPS, go_on_in, load_anew

STAGES = [1, 2, 3]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the stores that two ranks trained with, a stage in each."""
    return tmp_path_factory.mktemp("zero")


@pytest.fixture(scope="module")
def told(root: Path) -> list[Any]:
    return on_ranks(2, go_on_in, root, STAGES)


def test_a_new_engine_goes_on_with_the_same_losses_to_the_last_bit(told: list[Any]) -> None:
    first, second = told
    assert first != second, "each rank has rows of its own"
    for expected, found in first + second:
        assert len(expected) == STEPS
        assert found == expected


@pytest.mark.usefixtures("told")
def test_nothing_of_it_lies_in_the_clear(root: Path) -> None:
    files = [file for file in root.glob("*/checkpoints/**/*") if file.is_file()]
    assert len({file.relative_to(root).parts[0] for file in files}) == len(STAGES)
    assert {file.suffix for file in files} == {".sealed"}
    assert not [file for file in files if b"optim_states" in file.read_bytes()]


@pytest.mark.usefixtures("told")
def test_another_number_of_ranks_is_told_that_it_cannot_load_it(root: Path) -> None:
    (error,) = on_ranks(1, load_anew, root / "2", 2)
    assert isinstance(error, ConfigError)
    assert "2 ranks saved this ZeRO checkpoint, 1 cannot load it" in str(error)
