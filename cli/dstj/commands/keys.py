"""`dstj keys`: makes key-encryption keys for local runs, says which of them open a job, and destroys its data key."""

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import shown
from deepseek_trainer.contract.lines import say
from deepseek_trainer.contract.names import SERVER_REF, ExitCode
from deepseek_trainer.storage.kek import Kek
from deepseek_trainer.storage.key_directory import files_at, kek_at, keks_at
from deepseek_trainer.storage.keyring import KEYRING, owner_of
from deepseek_trainer.storage.keys import generate_kek
from deepseek_trainer.storage.renaming import PARTIAL
from deepseek_trainer.storage.rotation import grant as grant_keyring
from deepseek_trainer.storage.rotation import renew
from deepseek_trainer.storage.rotation import revoke as revoke_keyring
from deepseek_trainer.storage.rotation import rewrap as rewrap_keyring
from deepseek_trainer.storage.rotation import rotate as rotate_keyring
from deepseek_trainer.storage.rotation import shred as shred_keyring
from dstj.local.home import Home
from dstj.local.work import Work, directory_of, key_file, not_running, work_of

SECRET_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
ENTRY_NAME = re.compile(r"[-._a-zA-Z0-9]+")


def generate(arguments: Namespace) -> int:
    """Make a key where local runs find it, and print how a cluster gets it.  The key itself is never shown."""
    if not SECRET_NAME.fullmatch(arguments.secret):
        raise ConfigError(f"--secret {arguments.secret}: must be a DNS name", hint="for example --secret my-job-key")
    if not ENTRY_NAME.fullmatch(arguments.key) or arguments.key.startswith("."):
        raise ConfigError(f"--key {arguments.key}: must be letters, digits, '-', '_' or '.'", hint="leave it out: kek")
    _refuse_partial("--secret", arguments.secret)
    _refuse_partial("--key", arguments.key)
    home = Home.from_env()
    home.make()
    path = home.secret(arguments.secret) / arguments.key
    key = generate_kek(path)
    say(f"key {key.id} is in {path}")
    say("keep a copy in a safe place: without it nothing that it sealed can be read")
    say("for a cluster:")
    say(f"  kubectl create secret generic {arguments.secret} --from-file={arguments.key}={path}")
    return ExitCode.DONE


def _refuse_partial(option: str, name: str) -> None:
    if PARTIAL in name:
        raise ConfigError(
            f"{option} {shown(name)}: names with '{PARTIAL}' are those of files that are being written",
            hint="choose another",
        )


def rotate(arguments: Namespace) -> int:
    """Wrap a job's data key under a new key.  What it sealed is not touched, and a job that runs goes on."""
    if not arguments.new_key_dir and (server := _key_server(arguments)):
        _rewrap(arguments, server)
    elif arguments.directory:
        _rotate_directory(arguments)
    else:
        _rotate_local(arguments)
    return ExitCode.DONE


def _key_server(arguments: Namespace) -> Kek | None:
    key_dir = work_of(arguments).key_dir
    return kek_at(key_dir / SERVER_REF) if key_dir and (key_dir / SERVER_REF).exists() else None


def _rewrap(arguments: Namespace, server: Kek) -> None:
    """A server's key is rotated there; what its older versions wrapped opens until they are retired."""
    work = _opened_by_keys(arguments)
    rewrap_keyring(work.keyring, [server])
    say(f"{owner_of(work.keyring)}: the newest version of {server.id} wraps the data key")


def _rotate_local(arguments: Namespace) -> None:
    name, home = arguments.name, Home.from_env()
    if arguments.key_dir or arguments.new_key_dir or arguments.key:
        raise ConfigError(
            f"{name}: the new key of a local job is made where the old one is",
            hint=f"dstj keys rotate {name}, without --key-dir, --new-key-dir and --key",
        )
    place = home.known_job(name)
    keyring, file = _keyring(name, place.paths.work), key_file(home, place)
    if file is None:
        raise ConfigError(f"{name}: the job names no key", hint="give checkpoint.encryption.keyRef")
    old, new = renew(keyring, file)
    say(f"{name}: key {new.id} in {file} wraps the data key")
    say("keep a copy of it in a safe place")
    say(f"key {old.id} is now in {file}-{old.id}: destroy it when no other job and no backup needs it")


def _rotate_directory(arguments: Namespace) -> None:
    if not (arguments.key_dir and arguments.new_key_dir):
        raise ConfigError(
            f"--directory {arguments.directory}: needs the old key and the new one",
            hint="--key-dir DIR with the old key, --new-key-dir DIR with the new one",
        )
    keyring = Path(arguments.directory) / KEYRING
    owner, new = owner_of(keyring), _new_key(arguments)
    keks = keks_at(Path(arguments.key_dir), may_be_weak=True)
    is_new = rotate_keyring(keyring, keks, new)
    say(f"{owner}: key {new.id} wraps the data key" if is_new else f"{owner}: key {new.id} wrapped it already")
    say("destroy the old key and its copies when no backup of the volume needs it")


def _new_key(arguments: Namespace) -> Kek:
    directory = Path(arguments.new_key_dir)
    if arguments.key:
        return kek_at(directory / arguments.key)
    files = files_at(directory)
    if len(files) != 1:
        names = ", ".join(file.name for file in files) or "none"
        raise ConfigError(f"--new-key-dir {directory}: which key is the new one? {names}", hint="--key NAME says which")
    return kek_at(files[0])


def grant(arguments: Namespace) -> int:
    """Let another key open a job, such as one that a security officer keeps."""
    work, kek = _opened_by_keys(arguments), kek_at(Path(arguments.kek))
    is_new = grant_keyring(work.keyring, _keks(work), kek)
    say(f"{owner_of(work.keyring)}: key {kek.id} opens it" + ("" if is_new else " already"))
    return ExitCode.DONE


def revoke(arguments: Namespace) -> int:
    """Let a key open a job no longer."""
    work = _opened_by_keys(arguments)
    revoke_keyring(work.keyring, _keks(work), arguments.kek_id)
    say(f"{owner_of(work.keyring)}: key {arguments.kek_id} opens it no longer")
    say("it still opens copies of the old keyring, with all that the job seals: destroy it, or those copies")
    return ExitCode.DONE


def _opened_by_keys(arguments: Namespace) -> Work:
    work = work_of(arguments)
    _keyring(f"--directory {arguments.directory}" if arguments.directory else arguments.name, work.directory)
    return work


def _keks(work: Work) -> Sequence[Kek]:
    if work.key_dir is None:
        raise ConfigError(f"{work.directory}: needs a key that opens it", hint="--key-dir DIR with such a key")
    return keks_at(work.key_dir)


def shred(arguments: Namespace) -> int:
    """Destroy the data key of a job.  What it sealed stays on the disk and can never be read again."""
    which = f"--directory {arguments.directory}" if arguments.directory else arguments.name
    keyring = _keyring(which, directory_of(arguments))
    if not arguments.yes:
        raise ConfigError(
            f"{which}: its prepared data, checkpoints and result could never be read again",
            hint=f"if that is wanted: dstj keys shred {which} --yes",
        )
    with not_running(arguments):
        job = arguments.name or owner_of(keyring)
        left = shred_keyring(keyring)
    say(f"{job}: the data key is destroyed; destroy backups of {keyring} as well")
    for name in left:
        say(f"{shown(name)} beside it is no keyring of the job, and was left alone")
    return ExitCode.DONE


def _keyring(name: str, work: Path) -> Path:
    keyring = work / KEYRING
    if not os.path.lexists(keyring):
        raise ConfigError(f"{name}: no keyring {keyring}: nothing of the job is sealed")
    return keyring
