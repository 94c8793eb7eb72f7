"""Checkpoints and results in the clear, for those who ask for it."""

import json
import shutil
import stat
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deepseek_trainer.checkpoints.unseal import decrypt, decrypt_result
from deepseek_trainer.contract.errors import ConfigError, DataError, IntegrityError
from deepseek_trainer.storage.vault import Purpose
from support.builders.vault import JOB, a_state, a_store, a_vault
from support.faults.crashes import bad_sector


def test_a_decrypted_checkpoint_is_private_and_plain(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    info = store.save(3, a_state(3) | {"scheduler": {"step": 3}}, {})
    target = tmp_path / "clear"
    decrypt(info, store.vault, target)
    assert {path.name for path in target.iterdir()} == {"manifest.json", "rank-00000.json", "rank-00000.safetensors"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in target.iterdir()} == {0o600}
    assert stat.S_IMODE(target.stat().st_mode) == 0o700
    assert load_file(target / "rank-00000.safetensors")["model/layers.0.weight"][0] == 3
    assert json.loads((target / "manifest.json").read_bytes())["job"] == JOB


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    info = store.save(3, a_state(3), {})
    (tmp_path / "clear").mkdir()
    with pytest.raises(ConfigError, match="clear exists"):
        decrypt(info, store.vault, tmp_path / "clear")


def test_nothing_remains_of_a_checkpoint_that_does_not_authenticate(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    info = store.save(3, a_state(3), {})
    path = info.path / "rank-00000.safetensors.sealed"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(IntegrityError):
        decrypt(info, store.vault, tmp_path / "clear")
    assert not (tmp_path / "clear").exists()


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])
@pytest.mark.parametrize("name", ["rank-00000.safetensors", "rank-00000.json", "manifest.json"])
def test_a_file_of_the_same_step_that_was_set_aside_is_refused_in_the_place_of_the_recorded_one(
    tmp_path: Path, sealed: bool, name: str
) -> None:
    store = a_store(tmp_path, sealed=sealed)
    store.save(3, a_state(1) | {"scheduler": {"step": 1}}, {})
    store.set_aside(after_step=-1)
    info = store.save(3, a_state(2) | {"scheduler": {"step": 2}}, {})
    (aside,) = store.directory.glob("step-00000003.set-aside-*")
    (file,) = aside.glob(f"{name}*")
    shutil.copy(file, info.path)
    with pytest.raises(IntegrityError, match="not the file that was recorded"):
        decrypt(info, store.vault, tmp_path / "clear")
    assert not (tmp_path / "clear").exists()


def test_a_file_that_cannot_be_read_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = a_store(tmp_path)
    info = store.save(3, a_state(3), {})
    with monkeypatch.context() as patch:
        bad_sector(patch, "rank-00000.safetensors.sealed")
        with pytest.raises(IntegrityError, match=r"rank-00000\.safetensors cannot be read: Input/output error"):
            decrypt(info, store.vault, tmp_path / "clear")
    assert not (tmp_path / "clear").exists()


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "clear"])
def test_a_result_is_decrypted_with_its_subdirectories(tmp_path: Path, sealed: bool) -> None:
    vault = a_vault(tmp_path, purpose=Purpose.EXPORT, sealed=sealed)
    result = tmp_path / "demo"
    (result / "adapter").mkdir(parents=True)
    vault.write(result / "README.md", b"card")
    vault.write(result / "adapter" / "config.json", b"{}")
    decrypt_result(result, vault, tmp_path / "clear")
    assert (tmp_path / "clear" / "README.md").read_bytes() == b"card"
    assert (tmp_path / "clear" / "adapter" / "config.json").read_bytes() == b"{}"


def test_a_job_without_a_result_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no result in"):
        decrypt_result(tmp_path / "demo", a_vault(tmp_path, purpose=Purpose.EXPORT), tmp_path / "clear")
