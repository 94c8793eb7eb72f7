"""What the record of checkpoints catches: rollback, swaps, and crashes between any two steps of a commit."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_trainer.checkpoints.catalog import read_head
from deepseek_trainer.checkpoints.manifest import Head, Manifest
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.storage.durable import StorageError
from support.builders.vault import a_state, a_store, a_vault, weights_of
from support.faults.crashes import crashes, damage

BOTH = pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])


def weights_after_resuming(work: Path, sealed: bool = True) -> float | None:
    store = a_store(work, sealed=sealed)
    info = store.latest()
    return None if info is None else weights_of(store.load(info)[0])


def with_steps(work: Path, *steps: int, sealed: bool = True) -> Path:
    """Saves `steps`; returns the directory of checkpoints."""
    store = a_store(work, sealed=sealed)
    for step in steps:
        store.save(step, a_state(step), {})
    return store.directory


@BOTH
def test_a_missing_newest_checkpoint_is_an_error_that_says_how_to_go_on(tmp_path: Path, sealed: bool) -> None:
    checkpoints = with_steps(tmp_path, 1, 2, 3, sealed=sealed)
    shutil.rmtree(checkpoints / "step-00000003")
    with pytest.raises(
        IntegrityError, match=r"the newest checkpoint, .*step-00000003, is missing.*resumeFrom.*1, 2, 3"
    ):
        weights_after_resuming(tmp_path, sealed)
    store = a_store(tmp_path, sealed=sealed)
    store.set_aside(after_step=2)
    assert weights_after_resuming(tmp_path, sealed) == 2


def test_an_older_checkpoint_in_the_place_of_the_newest_is_refused(tmp_path: Path) -> None:
    checkpoints = with_steps(tmp_path, 1, 2)
    shutil.rmtree(checkpoints / "step-00000002")
    shutil.copytree(checkpoints / "step-00000001", checkpoints / "step-00000002")
    assert weights_after_resuming(tmp_path) == 1
    store = a_store(tmp_path)
    store.latest()
    assert [refused.step for refused in store.refused] == [2]


def test_a_set_aside_checkpoint_put_back_is_not_used(tmp_path: Path) -> None:
    checkpoints = with_steps(tmp_path, 1, 2, 3)
    store = a_store(tmp_path)
    store.set_aside(after_step=1)
    store.save(2, a_state(20), {})
    for step in (2, 3):
        (aside,) = checkpoints.glob(f"step-0000000{step}.set-aside-*")
        shutil.rmtree(checkpoints / f"step-0000000{step}", ignore_errors=True)
        aside.rename(checkpoints / f"step-0000000{step}")
    assert weights_after_resuming(tmp_path) == 1  # neither the old 2 nor the old 3
    assert not (checkpoints / "step-00000003").exists()


def test_an_older_record_put_back_loses_no_checkpoint_that_follows_from_it(tmp_path: Path) -> None:
    checkpoints = with_steps(tmp_path, 1)
    old = (checkpoints / "HEAD.json.sealed").read_bytes()
    with_steps(tmp_path, 2, 3)
    (checkpoints / "HEAD.json.sealed").write_bytes(old)
    assert weights_after_resuming(tmp_path) == 3


def test_a_removed_record_beside_checkpoints_is_an_error(tmp_path: Path) -> None:
    (with_steps(tmp_path, 1) / "HEAD.json.sealed").unlink()
    with pytest.raises(IntegrityError, match=r"HEAD.json.sealed is missing"):
        a_store(tmp_path)


def test_a_changed_record_is_an_error(tmp_path: Path) -> None:
    head = with_steps(tmp_path, 1) / "HEAD.json.sealed"
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(content)
    with pytest.raises(IntegrityError, match="does not authenticate"):
        a_store(tmp_path)


def test_files_of_one_checkpoint_are_refused_in_another(tmp_path: Path) -> None:
    checkpoints = with_steps(tmp_path, 1, 2)
    name = "rank-00000.safetensors.sealed"
    shutil.copy(checkpoints / "step-00000001" / name, checkpoints / "step-00000002" / name)
    assert weights_after_resuming(tmp_path) == 1


def test_a_checkpoint_planted_beside_the_recorded_ones_is_not_used(tmp_path: Path) -> None:
    checkpoints = with_steps(tmp_path, 1)
    planted = with_steps(tmp_path / "elsewhere", 9, sealed=False)
    shutil.copytree(planted / "step-00000009", checkpoints / "step-00000009")
    assert weights_after_resuming(tmp_path) == 1


def test_a_crash_before_any_file_operation_of_a_commit_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    with_steps(tmp_path / "start", 1, 2)

    def save_and_prune(work: Path, arm: Callable[[], None]) -> None:
        store = a_store(work)
        arm()
        store.save(3, a_state(3), {})
        store.prune(Retention(keep_last=2), None)

    found = []
    for work in crashes(tmp_path / "start", save_and_prune):
        found.append(weights_after_resuming(work))
        assert not [
            path for path in (work / "checkpoints").iterdir() if "partial" in path.name or "pruned" in path.name
        ]
    assert len(found) > 11
    assert found == sorted(found, key=lambda weights: weights or 0)
    assert set(found) == {2, 3}


@pytest.mark.parametrize("damaged", [(2,), (2, 3)], ids=["the newest", "the newest two"])
def test_a_crash_while_a_damaged_step_is_saved_again_leaves_the_good_one_before_or_the_new_one(
    tmp_path: Path, damaged: tuple[int, ...]
) -> None:
    checkpoints = with_steps(tmp_path / "start", 1, *damaged)
    for step in damaged:
        damage(checkpoints / f"step-{step:08d}/rank-00000.safetensors.sealed")

    def save_again(work: Path, arm: Callable[[], None]) -> None:
        store = a_store(work)
        arm()
        store.save(2, a_state(20), {})

    found = [weights_after_resuming(work) for work in crashes(tmp_path / "start", save_again)]
    assert len(found) > 11
    assert found == sorted(found, key=lambda weights: weights or 0)
    assert set(found) == {1, 20}


def test_a_damaged_step_whose_new_one_cannot_be_renamed_leaves_the_good_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(with_steps(tmp_path, 1, 2) / "step-00000002/rank-00000.safetensors.sealed")
    store, rename = a_store(tmp_path), Path.rename

    def refused(path: Path, target: Path) -> Path:
        if ".partial-" in path.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refused)
        with pytest.raises(StorageError):
            store.save(2, a_state(20), {})
    assert weights_after_resuming(tmp_path) == 1


def test_a_crash_while_setting_aside_never_brings_a_newer_checkpoint_back_once_it_is_recorded(tmp_path: Path) -> None:
    with_steps(tmp_path / "start", 1, 2, 3)

    def set_aside(work: Path, arm: Callable[[], None]) -> None:
        store = a_store(work)
        arm()
        store.set_aside(after_step=1)

    found = [weights_after_resuming(work) for work in crashes(tmp_path / "start", set_aside)]
    assert set(found) == {1, 3}
    assert found == sorted(found, reverse=True)


def test_fields_of_a_later_version_are_ignored_and_another_format_is_refused(tmp_path: Path) -> None:
    checkpoints = with_steps(tmp_path, 1, sealed=False)
    raw = (checkpoints / "step-00000001" / "manifest.json").read_bytes()
    content = json.loads(raw)
    for part in (content, content["files"][0], content["tensors"][0]):
        part["later"] = 1
    assert Manifest.from_json(json.dumps(content).encode()) == Manifest.from_json(raw)
    head = json.loads((checkpoints / "HEAD.json").read_bytes())
    for part in (head, head["commits"][0]):
        part["later"] = 1
    assert Head.from_json(json.dumps(head).encode()).steps == (1,)
    for parse, data in ((Manifest.from_json, content), (Head.from_json, head)):
        with pytest.raises(IntegrityError, match="a newer version wrote it"):
            parse(json.dumps(data | {"format": "dstj-later/2"}).encode())


def test_the_record_outlives_a_vault_that_is_opened_anew(tmp_path: Path) -> None:
    checkpoints = with_steps(tmp_path, 1, 2)
    head = read_head(checkpoints, a_vault(tmp_path))
    assert head is not None
    assert head.steps == (1, 2)


@BOTH
def test_links_out_of_the_store_go_and_what_they_lead_to_stays(tmp_path: Path, sealed: bool) -> None:
    """Where a checkpoint to be pruned and what a crash left were replaced by links."""
    checkpoints = with_steps(tmp_path, 1, 2, 3, sealed=sealed)
    outside = tmp_path / "outside"
    outside.mkdir()
    (head,) = checkpoints.glob("HEAD.json*")
    oldest = checkpoints / "step-00000001"
    oldest.rename(outside / oldest.name)
    oldest.symlink_to(outside / oldest.name)
    (checkpoints / "step-00000004.partial-1-ff").symlink_to(outside)
    before = content_of(outside)
    store = a_store(tmp_path, sealed=sealed)
    store.save(4, a_state(4), {})
    store.prune(Retention(keep_last=2, keep_best=False), None)
    assert content_of(outside) == before
    assert {path.name for path in checkpoints.iterdir()} == {head.name, "step-00000003", "step-00000004"}
    assert not [path for path in checkpoints.rglob("*") if path.is_symlink()]


def content_of(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@BOTH
def test_a_link_to_something_else_in_a_checkpoint_is_refused(tmp_path: Path, sealed: bool) -> None:
    checkpoints = with_steps(tmp_path, 1, 2, sealed=sealed)
    (file,) = (checkpoints / "step-00000002").glob("*.safetensors*")
    (tmp_path / "foreign").write_bytes(os.urandom(file.stat().st_size))
    file.unlink()
    file.symlink_to(tmp_path / "foreign")
    assert weights_after_resuming(tmp_path, sealed) == 1
