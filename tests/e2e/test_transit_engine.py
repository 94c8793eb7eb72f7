"""What a real transit engine, Vault's own, makes of what the trainer asks of it.

tests/trainer/storage/test_vault_transit.py asks a small server that speaks its documented API, also for logins, tokens
and the seal, which belong to Vault's core.
"""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.contract.key_ref import VaultTransit
from deepseek_trainer.storage.kek import UnwrapError
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from deepseek_trainer.storage.vault_transit import TransitKek
from support.builders.vault import JOB
from support.transit_engine import Engine, running

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),  # the first build
    pytest.mark.skipif(not shutil.which("go"), reason="builds a Go module"),
]
DEK, HERE, THERE = b"0123456789abcdef" * 2, b"lab/demo", b"lab/other"
BINDING = [
    pytest.param(key_type, derived, id=f"{key_type}{', derived' if derived else ''}")
    for key_type in ("aes128-gcm96", "aes256-gcm96", "chacha20-poly1305")
    for derived in ("false", "true")
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(tmp_path_factory.mktemp("engine")) as it:
        yield it


def kek(engine: Engine, directory: Path, name: str) -> TransitKek:
    directory.mkdir(exist_ok=True)
    (directory / "ca.crt").write_bytes(engine.ca.read_bytes())
    (directory / "token").write_text("hvs.of-the-core")
    (directory / "token").chmod(0o600)
    auth, ca = {"tokenSecret": {"secretName": "tokens"}}, {"configMapName": "ca"}
    fields = {"address": engine.address, "keyName": name, "auth": auth, "caCertificate": ca}
    return TransitKek(VaultTransit.model_validate(fields), directory)


@pytest.mark.parametrize(("key_type", "derived"), BINDING)
def test_each_type_that_takes_associated_data_binds_a_key_to_its_job(
    engine: Engine, tmp_path: Path, key_type: str, derived: str
) -> None:
    name = f"{key_type}-{derived}"
    engine.tell(f"keys/{name}", {"type": key_type, "derived": derived})
    wrapped = kek(engine, tmp_path, name).wrap(DEK, HERE)
    assert kek(engine, tmp_path, name).unwrap(wrapped, HERE) == DEK
    with pytest.raises(UnwrapError):
        kek(engine, tmp_path, name).unwrap(wrapped, THERE)


@pytest.mark.parametrize("key_type", ["rsa-2048", "ed25519"])
def test_a_type_that_binds_nothing_is_refused(engine: Engine, tmp_path: Path, key_type: str) -> None:
    engine.tell(f"keys/{key_type}", {"type": key_type})
    with pytest.raises(IntegrityError, match=r"non-AEAD.*aes256-gcm96"):
        kek(engine, tmp_path, key_type).wrap(DEK, HERE)


def test_no_changed_byte_unwraps(engine: Engine, tmp_path: Path) -> None:
    engine.tell("keys/changed")
    one = kek(engine, tmp_path, "changed")
    wrapped = one.wrap(DEK, HERE)
    for place in range(0, len(wrapped), 3):
        for bits in (1, 2, 0x20):
            changed = bytearray(wrapped)
            changed[place] ^= bits
            with pytest.raises((UnwrapError, IntegrityError)):
                one.unwrap(bytes(changed), HERE)


def test_a_rotated_key_opens_its_old_versions_until_they_are_retired(engine: Engine, tmp_path: Path) -> None:
    engine.tell("keys/rotated")
    old = kek(engine, tmp_path, "rotated").wrap(DEK, HERE)
    engine.tell("keys/rotated/rotate")
    new = kek(engine, tmp_path, "rotated").wrap(DEK, HERE)
    assert (old[:9], new[:9]) == (b"vault:v1:", b"vault:v2:")
    assert kek(engine, tmp_path, "rotated").unwrap(old, HERE) == DEK
    engine.tell("keys/rotated/config", {"min_decryption_version": "2"})
    with pytest.raises(IntegrityError, match=r"disallowed by policy.*min_decryption_version"):
        kek(engine, tmp_path, "rotated").unwrap(old, HERE)
    assert kek(engine, tmp_path, "rotated").unwrap(new, HERE) == DEK


def test_a_key_that_is_not_there_is_named(engine: Engine, tmp_path: Path) -> None:
    engine.tell("keys/there")
    wrapped = kek(engine, tmp_path, "there").wrap(DEK, HERE)
    for ask in (lambda one: one.wrap(DEK, HERE), lambda one: one.unwrap(wrapped, HERE)):
        with pytest.raises(IntegrityError, match=r"vault-transit:transit/none: 'encryption key not found'.*must exist"):
            ask(kek(engine, tmp_path, "none"))


def test_a_keyring_holds_what_the_engine_wraps(engine: Engine, tmp_path: Path) -> None:
    engine.tell("keys/keyring", {"derived": "true"})
    path = tmp_path / "work" / KEYRING
    made = Keyring.create(path, JOB, kek(engine, tmp_path, "keyring"))
    assert Keyring.open(path, JOB, [kek(engine, tmp_path, "keyring")]).keys[0].material == made.keys[0].material
    dek = made.keys[0].material
    assert not any(text in path.read_text() for text in (dek.hex(), base64.b64encode(dek).decode()))
