"""Only directories that we would name so are checkpoints."""

import logging

import pytest

from deepseek_trainer.checkpoints.catalog import list_checkpoints, misnamed_in, steps_in
from support.builders.vault import a_state, a_store, a_vault

NAMES = [
    "step-000000099",
    "step-٠٠٠٠٠٠٩٩",
    "step-0000009\uff19",
    "step--0000099",
    "step-99",
    "step-00000099 ",
    "step-" + "9" * 200,
    "step-00000099\n",
    "step-",
    "step-+0000099",
    "step-0x000099",
]


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_left_alone_and_named_once(tmp_path, caplog, name):
    store = a_store(tmp_path)
    store.save(10, a_state(10), {})
    stray = tmp_path / "checkpoints" / name
    stray.mkdir()
    (stray / "manifest.json").write_text("{}")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = a_store(tmp_path)
    assert again.latest().step == 10
    again.set_aside(after_step=-1)
    again.save(99, a_state(99), {})
    assert again.latest().step == 99
    assert stray.is_dir()
    (told,) = [record for record in caplog.records if "leaving alone" in record.getMessage()]
    assert repr(name)[1:40] in told.getMessage()
    assert told.getMessage().isprintable()


def test_steps_of_nine_and_more_digits_are_found(tmp_path):
    for step in (1, 99_999_999, 100_000_000, 12_345_678_901):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert steps_in(tmp_path) == [1, 99_999_999, 100_000_000, 12_345_678_901]
    assert misnamed_in(tmp_path) == []


def test_strange_directories_are_not_listed(tmp_path):
    store = a_store(tmp_path)
    store.save(10, a_state(10), {})
    (tmp_path / "checkpoints" / "step-000000010").mkdir()
    vault = a_vault(tmp_path)
    assert [info.step for info in list_checkpoints(tmp_path / "checkpoints", vault)] == [10]
