"""`dstj keys`: key-encryption keys for local runs, and the end of a job's data key."""

import re
from argparse import Namespace

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.names import ExitCode
from deepseek_trainer.keys import KEYRING, generate_kek
from deepseek_trainer.keys import shred as shred_keyring
from dstj.home import Home

SECRET_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
ENTRY_NAME = re.compile(r"[-._a-zA-Z0-9]+")


def generate(arguments: Namespace) -> int:
    """Make a key that local runs find by itself, and say how a cluster gets it.  The key itself is never shown."""
    if not SECRET_NAME.fullmatch(arguments.secret):
        raise ConfigError(f"--secret {arguments.secret}: must be a DNS name", hint="for example --secret my-job-key")
    if not ENTRY_NAME.fullmatch(arguments.key) or arguments.key.startswith("."):
        raise ConfigError(f"--key {arguments.key}: must be letters, digits, '-', '_' or '.'", hint="leave it out: kek")
    home = Home.from_env()
    home.make()
    path = home.secret(arguments.secret) / arguments.key
    key = generate_kek(path)
    print(f"key {key.id} in {path}")
    print("keep a copy in a safe place: without it nothing that it sealed can be read")
    print("for a cluster:")
    print(f"  kubectl create secret generic {arguments.secret} --from-file={arguments.key}={path}")
    return ExitCode.DONE


def shred(arguments: Namespace) -> int:
    """Destroy the data key of a job; what it sealed stays on the disk and can never be read again."""
    place = Home.from_env().known_job(arguments.name)
    keyring = place.paths.work / KEYRING
    if not keyring.exists():
        raise ConfigError(f"{arguments.name}: has no keyring ({keyring}): nothing of it is sealed")
    if not arguments.yes:
        raise ConfigError(
            f"{arguments.name}: its prepared data, checkpoints and result could never be read again",
            hint=f"if that is wanted: dstj keys shred {arguments.name} --yes",
        )
    with place.locked():
        shred_keyring(keyring)
    print(f"{arguments.name}: the data key is destroyed; destroy backups of {keyring} as well")
    return ExitCode.DONE
