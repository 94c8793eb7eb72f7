"""What stands for a pod's identity before a key server, on a machine that issues none: a token of the server itself."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek_operator.jobs.key_server import key_server_of
from deepseek_operator.jobs.spec import JobSpec
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.key_ref import CaCertificate, VaultAuth, VaultTransit
from deepseek_trainer.contract.names import SERVER_CA, SERVER_REF, SERVER_TOKEN
from dstj.local.home import Home

ENV_TOKEN = "DSTJ_VAULT_TOKEN_FILE"  # noqa: S105  of the token, the name of the variable with the name of its file


@dataclass(frozen=True, slots=True)
class KeyServer:
    """A key server, and the files that a job shows it or checks it by."""

    transit: VaultTransit
    files: Mapping[str, Path]

    def lay_into(self, directory: Path) -> None:
        """Make `directory` what `--key-dir` takes.  Files are linked: a token that was renewed is read anew."""
        (directory / SERVER_REF).write_text(self.transit.model_dump_json(by_alias=True, exclude_none=True, indent=2))
        for name, file in self.files.items():
            (directory / name).symlink_to(file)


def key_server(spec: JobSpec, home: Home, token: str | None) -> KeyServer | None:
    """The key server of a job, if it has one.  Raises ConfigError where a file for it is missing."""
    transit = key_server_of(spec)
    if transit is None:
        return None
    files = {SERVER_TOKEN: _token(transit.auth, home, token or os.environ.get(ENV_TOKEN))}
    if transit.ca_certificate:
        files[SERVER_CA] = _ca(transit.ca_certificate, home)
    return KeyServer(transit, files)


def _token(auth: VaultAuth, home: Home, given: str | None) -> Path:
    if given:
        return _existing(Path(given).expanduser().absolute(), "name the file that has the token")
    if secret := auth.token_secret:
        return _existing(home.secret(secret.secret_name) / secret.key, "put it there, or give --vault-token FILE")
    raise ConfigError(
        "checkpoint.encryption.keyRef.vaultTransit.auth.serviceAccount: this machine has no ServiceAccount",
        hint=f"log in, and give the token: --vault-token ~/.vault-token, or {ENV_TOKEN}",
    )


def _ca(ca: CaCertificate, home: Home) -> Path:
    directory = home.config_map(ca.config_map_name) if ca.config_map_name else home.secret(str(ca.secret_name))
    return _existing(directory / ca.key, "put the CA of the key server there, as PEM")


def _existing(file: Path, hint: str) -> Path:
    if not file.is_file():
        raise ConfigError(f"no file {file}, for checkpoint.encryption.keyRef.vaultTransit", hint=hint)
    return file
