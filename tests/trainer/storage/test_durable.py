"""What happens when the disk says no."""

import os
from pathlib import Path

import pytest

from deepseek_trainer.storage.durable import StorageError, publish_file, replace_file
from support.builders.vault import a_state, a_store, a_vault, weights_of
from support.faults.crashes import fill


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])
def test_a_full_disk_is_named_with_needed_and_free_bytes_and_nothing_remains(
    tmp_path: Path, small_disk: Path, sealed: bool
) -> None:
    vault = a_vault(tmp_path, sealed=sealed)
    with pytest.raises(
        StorageError, match=r"No space left on device, 2,000,000 bytes needed, [\d,]+ bytes free"
    ) as caught:
        vault.write(small_disk / "file", bytes(2_000_000))
    assert caught.value.errno == 28
    assert not list(small_disk.iterdir())
    vault.write(small_disk / "file", b"there is room again")


def test_a_keyring_that_cannot_be_replaced_keeps_its_content(small_disk: Path) -> None:
    replace_file(small_disk / "small", b"old")
    with pytest.raises(StorageError, match="No space left"):
        replace_file(small_disk / "small", bytes(2_000_000))
    assert (small_disk / "small").read_bytes() == b"old"
    assert [path.name for path in small_disk.iterdir()] == ["small"]


def test_a_file_is_published_once_where_there_are_no_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_links(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    assert publish_file(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_missing_directory_is_reported_as_storage(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"cannot write.*No such file or directory"):
        a_vault(tmp_path).write(tmp_path / "missing" / "file", b"x")


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])
def test_a_save_that_fills_the_disk_leaves_the_checkpoint_before_it(small_disk: Path, sealed: bool) -> None:
    store = a_store(small_disk, sealed=sealed)
    store.save(1, a_state(1), {})
    with pytest.raises(StorageError, match="No space left"):
        store.save(2, a_state(2, floats=500_000), {})
    assert not list(store.directory.glob("*.partial-*"))
    info = store.latest()
    assert info is not None
    assert weights_of(store.load(info)[0]) == 1
    assert store.save(3, a_state(3), {}).step == 3


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])
def test_a_disk_that_a_killed_save_has_filled_has_room_for_the_next_run(small_disk: Path, sealed: bool) -> None:
    store = a_store(small_disk, sealed=sealed)
    store.save(1, a_state(1), {})
    fill(store.directory / "step-00000002.partial-1-abc")
    again = a_store(small_disk, sealed=sealed)
    assert not list(store.directory.glob("*.partial-*"))
    again.save(2, a_state(2), {})
    info = again.latest()
    assert info is not None
    assert weights_of(again.load(info)[0]) == 2


def test_a_disk_that_others_have_filled_is_reported(small_disk: Path) -> None:
    a_store(small_disk).save(1, a_state(1), {})
    fill(small_disk / "others")
    with pytest.raises(StorageError, match="No space left"):
        a_store(small_disk)
