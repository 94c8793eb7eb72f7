"""Keyrings of format 1: opened as they are, and written as format 2 by whatever changes keyrings."""

from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keyring import KEYRING, Keyring, owner_of, read_keyring
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.rotation import grant, revoke, rotate, shred
from support.builders.keyrings import CREATED, a_keyring_1, content_of, write_content
from support.builders.vault import JOB, KEK, OTHER_KEK, a_vault

KEYS = (Key.random(), Key.random())


def test_what_an_earlier_version_wrapped_opens_and_stays_as_it_is(tmp_path: Path) -> None:
    path = a_keyring_1(tmp_path, keys=KEYS)
    before = path.read_bytes()
    assert [key.id for key in Keyring.open(path, JOB, [OTHER_KEK, KEK]).keys] == [key.id for key in KEYS]
    assert JobKeys(path, JOB, [KEK]).to_seal().material == KEYS[0].material
    a_vault(tmp_path).write(tmp_path / "file", b"x")
    assert path.read_bytes() == before
    assert owner_of(path) == JOB


def test_an_attempt_makes_format_2_of_it_and_who_had_opened_it_goes_on(tmp_path: Path) -> None:
    path = a_keyring_1(tmp_path, keys=KEYS)
    running = a_vault(tmp_path)
    JobKeys(path, JOB, [KEK]).rotate()
    content = content_of(path)
    assert (content["format"], content["primary"]) == ("dstj-keyring/2", KEYS[0].id)
    assert [(key["id"], key["created"]) for key in content["keys"]] == [(key.id, CREATED) for key in KEYS]
    running.write(tmp_path / "file", b"x")
    assert a_vault(tmp_path).read(tmp_path / "file") == b"x"
    written = path.stat().st_ino
    JobKeys(path, JOB, [KEK]).rotate()
    assert path.stat().st_ino == written


def test_rotation_grant_and_revocation_make_format_2_of_it(tmp_path: Path) -> None:
    path = a_keyring_1(tmp_path / "rotated")
    assert rotate(path, [KEK], OTHER_KEK)
    assert read_keyring(path).keks == (OTHER_KEK.id,)
    path = a_keyring_1(tmp_path / "granted")
    assert grant(path, [KEK], OTHER_KEK)
    assert read_keyring(path).keks == (KEK.id, OTHER_KEK.id)
    revoke(path, [OTHER_KEK], KEK.id)
    assert read_keyring(path).keks == (OTHER_KEK.id,)


def test_a_weak_key_that_wraps_it_opens_it_for_rotation(tmp_path: Path) -> None:
    weak = Key(b"correct horse battery staple 42!")
    path = a_keyring_1(tmp_path, kek=weak, keys=KEYS)
    assert rotate(path, [weak], KEK)
    assert Keyring.open(path, JOB, [KEK]).keys[0].material == KEYS[0].material
    assert weak.id not in path.read_text()


@pytest.mark.parametrize("field", ["wrapped", "id"])
def test_a_changed_one_is_refused(tmp_path: Path, field: str) -> None:
    path = a_keyring_1(tmp_path)
    content = content_of(path)
    value = content["keys"][0][field]
    content["keys"][0][field] = ("0" if value[0] != "0" else "1") + value[1:]
    if field == "id":
        content["primary"] = content["keys"][0]["id"]
    write_content(path, content)
    with pytest.raises(IntegrityError, match="was changed"):
        Keyring.open(path, JOB, [KEK])


def test_a_shredded_one_says_so(tmp_path: Path) -> None:
    (tmp_path / KEYRING).write_text('{"format": "dstj-keyring/1", "job": "lab/demo", "primary": null, "keys": []}')
    with pytest.raises(IntegrityError, match="was shredded"):
        Keyring.open(tmp_path / KEYRING, JOB, [KEK])


def test_one_of_format_1_is_shredded(tmp_path: Path) -> None:
    path = a_keyring_1(tmp_path)
    wrapped = content_of(path)["keys"][0]["wrapped"]
    assert shred(path) == []
    assert wrapped not in path.read_text()
    with pytest.raises(IntegrityError, match="was shredded"):
        read_keyring(path)
