"""Checkpoints in the clear, for those who ask for it."""

import json
import stat
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from deepseek_trainer.checkpoints.unseal import decrypt
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from support.builders.vault import JOB, a_state, a_store


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
