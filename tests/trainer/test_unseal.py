"""Checkpoints and results in the clear, for those who ask for it."""

import json
import stat
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deepseek_trainer.contract.errors import ConfigError, DataError, IntegrityError
from deepseek_trainer.unseal import decrypt, decrypt_result
from deepseek_trainer.vault import Purpose
from vault_builders import JOB, a_state, a_store, a_vault


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
def test_a_result_is_decrypted_with_its_subdirectories(tmp_path: Path, sealed: bool) -> None:
    vault = a_vault(tmp_path, purpose=Purpose.EXPORT, sealed=sealed)
    result = tmp_path / "demo"
    (result / "adapter").mkdir(parents=True)
    vault.write(result / "README.md", b"card")
    vault.write(result / "adapter" / "config.json", b"{}")
    decrypt_result(result, vault, tmp_path / "clear")
    assert (tmp_path / "clear" / "README.md").read_bytes() == b"card"
    assert (tmp_path / "clear" / "adapter" / "config.json").read_bytes() == b"{}"


def test_a_job_without_a_result_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no result in"):
        decrypt_result(tmp_path / "demo", a_vault(tmp_path, purpose=Purpose.EXPORT), tmp_path / "clear")
