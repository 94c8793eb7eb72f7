"""The KEKs of a directory: files with keys, or a key server with what it is shown."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.key_ref import VaultTransit
from deepseek_trainer.contract.names import SERVER_REF
from deepseek_trainer.storage.kek import Kek
from deepseek_trainer.storage.keys import keks_in, key_files, read_kek
from deepseek_trainer.storage.opening import content_of

_MAX_REF: Final = 1 << 16  # [bytes]


def keks_at(directory: Path, *, may_be_weak: bool = False) -> Sequence[Kek]:
    """The key server that vault-transit.json names, or else all keys in files.  Raises as `keks_in` does."""
    reference = directory / SERVER_REF
    return [kek_at(reference)] if reference.exists() else keks_in(directory, may_be_weak=may_be_weak)


def kek_at(file: Path) -> Kek:
    """The key in a file, or the key server that vault-transit.json names.  Raises as `read_kek` does."""
    return key_server(_read(file), file.parent) if file.name == SERVER_REF else read_kek(file)


def files_at(directory: Path) -> list[Path]:
    """The files of a directory that `kek_at` may take."""
    reference = directory / SERVER_REF
    return [reference] if reference.exists() else key_files(directory)


@cache
def key_server(transit: VaultTransit, directory: Path) -> Kek:
    """One for all vaults of this process, because thousands of ranks may ask the same server."""
    from deepseek_trainer.storage.vault_transit import TransitKek  # noqa: PLC0415 time that only its jobs need

    return TransitKek(transit, directory)


def _read(path: Path) -> VaultTransit:
    try:
        return VaultTransit.model_validate_json(content_of(path, max_bytes=_MAX_REF))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ConfigError(
            f"{path} is no key server: {shown(place)}: {shown(first['msg'], 200)}",
            hint="give it the content of the job's checkpoint.encryption.keyRef.vaultTransit, as JSON",
        ) from None
