"""Finds the work volume that a command is about: that of a local job, or a copied or mounted one."""

import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.names import SERVER_REF
from deepseek_trainer.storage.keyring import KEYRING
from deepseek_trainer.storage.vault import Purpose, Vault
from dstj.local.home import Home, JobHome
from dstj.local.store import stored


@dataclass(frozen=True, slots=True)
class Work:
    """A job's work volume, the directory of the key that opens it, and whose it must be."""

    directory: Path
    key_dir: Path | None  # None if nothing in it is sealed
    job: str | None = None  # "namespace/name"; None: whichever it names

    @property
    def checkpoints(self) -> Path:
        return self.directory / "checkpoints"

    @property
    def export(self) -> Path:
        return self.directory / "export"

    @property
    def keyring(self) -> Path:
        return self.directory / KEYRING

    @property
    def is_sealed(self) -> bool:
        """Whether its job seals.  The key tells, or the keyring, and no other file: others can write those."""
        return self.key_dir is not None or os.path.lexists(self.keyring)

    def vault(self, purpose: Purpose, *, sealed: bool) -> Vault:
        """Raises ConfigError if a key is needed and none is named, IntegrityError if the key is missing or wrong.

        Raises IntegrityError, too, if the keyring is another job's.
        """
        if not sealed:
            return Vault(self.job or "", purpose)
        if self.key_dir is None:
            raise ConfigError(
                f"{self.directory}: the volume is sealed", hint="give --key-dir DIR with the job's key-encryption key"
            )
        vault = Vault.of_work(self.directory, purpose, self.key_dir)
        if self.job not in (None, vault.job):
            raise IntegrityError(
                f"{self.keyring} belongs to job {shown(vault.job)}, not to {self.job}",
                hint="the volume of another job, or its keyring, was put in the place of this one's",
            )
        return vault


def work_of(arguments: Namespace) -> Work:
    """The work volume of the job NAME, or --directory, with the key that --key-dir or the job's file names."""
    given = Path(arguments.key_dir) if arguments.key_dir else None
    if arguments.directory:
        return Work(Path(arguments.directory), given)
    home = Home.from_env()
    place = home.known_job(arguments.name)
    file = key_file(home, place)
    return Work(place.paths.work, given or (file and file.parent), _identity(place))


def _identity(place: JobHome) -> str | None:
    """The job that was run there, as it names itself in associated data."""
    known: Mapping[str, Any] = (stored(place) or {}).get("metadata", {})
    return f"{known['namespace']}/{known['name']}" if {"namespace", "name"} <= known.keys() else None


def directory_of(arguments: Namespace) -> Path:
    """The work volume of the job NAME, or --directory."""
    return Path(arguments.directory) if arguments.directory else Home.from_env().known_job(arguments.name).paths.work


@contextmanager
def not_running(arguments: Namespace) -> Iterator[None]:
    """Hold the local job's lock for the block.  Raises TryAgainError while a `dstj run` of the job is alive."""
    if arguments.directory:
        yield
    else:
        with Home.from_env().known_job(arguments.name).locked():
            yield


def key_file(home: Home, place: JobHome) -> Path | None:
    """The file of the key-encryption key, or of the key server, that a local job names; None if it seals nothing."""
    if not (encryption := checkpoint_of(place).get("encryption")):
        return None
    reference: dict[str, Any] = encryption["keyRef"]
    if "vaultTransit" in reference:
        return place.paths.key_dir / SERVER_REF
    return home.secret(reference["secretName"]) / str(reference.get("key", "kek"))


def checkpoint_of(place: JobHome) -> Mapping[str, Any]:
    """The `spec.checkpoint` of a local job, as its file has it."""
    return (stored(place) or {"spec": {}})["spec"].get("checkpoint") or {}
