"""The vaults of a job, as its config asks for them, with the keys that are mounted for it."""

from collections.abc import Sequence
from pathlib import Path

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.key_ref import KeyRef
from deepseek_trainer.contract.names import Paths
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.kek import Kek
from deepseek_trainer.storage.key_directory import key_server
from deepseek_trainer.storage.keyring import KEYRING
from deepseek_trainer.storage.keys import keks_beside
from deepseek_trainer.storage.vault import Purpose, Vault


def data_vault(config: TrainingConfig, paths: Paths) -> Vault:
    """Raises IntegrityError, as the other vaults do, where the job's key is missing or wrong."""
    return _vault(config, paths, Purpose.DATA, sealed=config.seals_data)


def checkpoint_vault(config: TrainingConfig, paths: Paths) -> Vault:
    return _vault(config, paths, Purpose.CHECKPOINT, sealed=config.seals_checkpoints)


def export_vault(config: TrainingConfig, paths: Paths) -> Vault:
    return _vault(config, paths, Purpose.EXPORT, sealed=config.seals_export)


def manifest_vault(config: TrainingConfig, paths: Paths) -> Vault:
    """Of the result's manifest.  Where the job has a key it is sealed, even if the result is not: it says which."""
    return _vault(config, paths, Purpose.EXPORT, sealed=config.seals_checkpoints)


def follow_rotation(config: TrainingConfig, paths: Paths) -> None:
    """Wrap the job's data key under the key that the job names, where an older one beside that still wraps it."""
    if config.checkpoint.encryption is not None:
        _keys(config, paths).rotate()


def _vault(config: TrainingConfig, paths: Paths, purpose: Purpose, *, sealed: bool) -> Vault:
    return Vault(str(config.job), purpose, _keys(config, paths) if sealed else None)


def _keys(config: TrainingConfig, paths: Paths) -> JobKeys:
    encryption = config.checkpoint.encryption
    assert encryption is not None, "the spec's rules ask for a key where anything is sealed"
    return JobKeys(paths.work / KEYRING, str(config.job), keks_of(encryption.key_ref, paths.key_dir))


def keks_of(key_ref: KeyRef, directory: Path) -> Sequence[Kek]:
    """The KEKs that `directory`, where the pod's volume of keys is mounted, opens: first the one that wraps."""
    if key_ref.vault_transit:
        return [key_server(key_ref.vault_transit, directory)]
    return keks_beside(directory / key_ref.key)
