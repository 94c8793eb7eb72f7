"""The vaults of a job: sealed as its config asks, with the keys that are mounted for it."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from deepseek_trainer.storage.keys import generate_kek
from deepseek_trainer.storage.vault import Purpose, Vault
from deepseek_trainer.worker.vaults import checkpoint_vault, data_vault, export_vault, follow_rotation
from support.builders.vault import JOB, KEK, OTHER_KEK, a_key_file
from support.fakes.vault_server import vault_server
from support.samples.api import CA, LOGIN


def a_config(key_ref: dict[str, Any] | None = None, **sealed: bool) -> TrainingConfig:
    key_ref = key_ref or {"secretName": "demo-key"}
    parts: dict[str, Any] = {
        "job": {"namespace": "lab", "name": "demo"},
        "num_nodes": 1,
        "num_proc_per_node": 1,
        "model": {"base": {"claimName": "models"}},
        "data": {"train": {"claimName": "data"}},
        "method": {},
        "optimization": {},
        "checkpoint": {"encryption": {"keyRef": key_ref}} if sealed.pop("encrypted", True) else {},
        "evaluation": {},
        "export": {},
    }
    for part, value in sealed.items():
        parts[part]["sealed"] = value
    return TrainingConfig.model_validate(parts)


def test_a_job_with_a_key_seals_all_that_it_does_not_exempt(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    a_key_file(paths.key_dir / "kek")
    config = a_config(export=False)
    is_sealed = [make(config, paths).sealed for make in (data_vault, checkpoint_vault, export_vault)]
    assert is_sealed == [True, True, False]
    paths.work.mkdir()
    data_vault(config, paths).write(paths.work / "file", b"x")
    assert Vault.of_work(paths.work, Purpose.DATA, paths.key_dir).read(paths.work / "file") == b"x"


def test_a_job_without_a_key_writes_in_the_clear(tmp_path: Path) -> None:
    config = a_config(encrypted=False)
    assert not checkpoint_vault(config, Paths(tmp_path)).sealed
    assert checkpoint_vault(config, Paths(tmp_path)).key_id is None


def test_a_job_whose_key_is_missing_fails_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"no key-encryption key.*kek"):
        data_vault(a_config(), Paths(tmp_path))


def test_an_attempt_rewraps_under_the_key_that_the_job_names(tmp_path: Path) -> None:
    """The Secret has a new key under the job's name, and the old one beside it."""
    paths = Paths(tmp_path)
    Keyring.create(paths.work / KEYRING, JOB, KEK)
    a_key_file(paths.key_dir / "kek", OTHER_KEK.material)
    a_key_file(paths.key_dir / "kek-old")
    running = checkpoint_vault(a_config(), paths)
    follow_rotation(a_config(), paths)
    running.write(paths.work / "file", b"x")
    (paths.key_dir / "kek-old").unlink()
    assert checkpoint_vault(a_config(), paths).read(paths.work / "file") == b"x"


def test_the_first_attempt_has_nothing_to_rewrap(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    a_key_file(paths.key_dir / "kek", generate_kek(tmp_path / "fresh").material)
    follow_rotation(a_config(), paths)
    assert not (paths.work / KEYRING).exists()


def test_a_process_asks_a_key_server_once_for_all_vaults(tmp_path: Path) -> None:
    paths = Paths(tmp_path)
    with vault_server(tmp_path / "certificates") as server:
        shutil.copytree(server.certificates, paths.key_dir)
        (paths.key_dir / "jwt").write_text("jwt.good")
        (paths.key_dir / "jwt").chmod(0o640)
        fields = {"address": server.address, "keyName": "training", "auth": LOGIN, "caCertificate": CA}
        config = a_config({"vaultTransit": fields})
        paths.work.mkdir()
        data_vault(config, paths).write(paths.work / "file", b"x")
        follow_rotation(config, paths)
        for make in (data_vault, checkpoint_vault, export_vault):
            assert make(config, paths).key_id == data_vault(config, paths).key_id
        assert data_vault(config, paths).read(paths.work / "file") == b"x"
        asked = [path.rsplit("/", 2)[1] for path in server.requests]
        assert asked == ["kubernetes", "encrypt", "decrypt", "decrypt"], "the second decrypt tries another job"
