"""Rotation of a key-encryption key: one step, no data file touched, and never a moment without a key that opens."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.storage.durable import keep_owner
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from deepseek_trainer.storage.keys import keks_beside, keks_in, read_kek
from deepseek_trainer.storage.rotation import renew, rotate, shred
from support.builders.vault import JOB, KEK, OTHER_KEK, a_key_file, a_state, a_store, a_vault, weights_of
from support.faults.crashes import crashes


def sealed_files(work: Path) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in work.rglob("*.sealed")}


def test_a_store_that_is_open_goes_on_while_its_key_is_rotated(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    store.save(1, a_state(1), {})
    before = sealed_files(tmp_path)
    assert rotate(tmp_path / KEYRING, [KEK], OTHER_KEK)
    assert sealed_files(tmp_path) == before
    store.save(2, a_state(2), {})
    with pytest.raises(IntegrityError, match="wrong key"):
        a_vault(tmp_path, kek=KEK)
    again = CheckpointStore(store.directory, a_vault(tmp_path, kek=OTHER_KEK))
    found = [again.at(step) for step in (1, 2)]
    assert [weights_of(again.load(info)[0]) for info in found if info] == [1, 2]


def test_an_old_keyring_put_back_does_not_open_under_the_new_key(tmp_path: Path) -> None:
    path = Keyring.create(tmp_path / KEYRING, JOB, KEK).path
    old = path.read_bytes()
    rotate(path, [KEK], OTHER_KEK)
    path.write_bytes(old)
    with pytest.raises(IntegrityError, match="wrong key"):
        Keyring.open(path, JOB, [OTHER_KEK])


def test_a_second_rotation_to_the_same_key_writes_nothing(tmp_path: Path) -> None:
    path = Keyring.create(tmp_path / KEYRING, JOB, KEK).path
    assert rotate(path, [KEK], OTHER_KEK)
    written = path.stat().st_ino
    assert not rotate(path, [KEK], OTHER_KEK)
    assert path.stat().st_ino == written


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_root_replaces_on_the_volume_of_a_pod_stays_the_pods(tmp_path: Path) -> None:
    path = Keyring.create(tmp_path / KEYRING, JOB, KEK).path
    key, file = a_key_file(tmp_path / "keys/kek"), tmp_path / "file.sealed"
    vault = a_vault(tmp_path)
    vault.replace(tmp_path / "file", b"old")
    for each in (path, key, file):
        os.chown(each, 10001, 10002)
    renew(path, key)
    vault.replace(tmp_path / "file", b"new")
    owners = {(each.stat().st_uid, each.stat().st_gid) for each in (path, file, *key.parent.iterdir())}
    assert owners == {(10001, 10002)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_root_gives_nothing_away_that_a_link_leads_to(tmp_path: Path) -> None:
    """Who can write to the volume can put a link in the place of the file that root has just made."""
    theirs, old = tmp_path / "theirs", tmp_path / "old"
    theirs.touch()
    old.touch()
    os.chown(old, 10001, 10002)
    (tmp_path / "partial").symlink_to(theirs)
    keep_owner(tmp_path / "partial", old)
    assert (theirs.stat().st_uid, theirs.stat().st_gid) == (0, 0)


def test_a_keyring_that_does_not_open_is_not_rotated(tmp_path: Path) -> None:
    path = Keyring.create(tmp_path / KEYRING, JOB, KEK).path
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match="wrong key"):
        rotate(path, [], OTHER_KEK)
    assert path.read_bytes() == before


def test_a_renewed_key_has_the_old_ones_name_and_the_old_one_stays_beside_it(tmp_path: Path) -> None:
    keyring = Keyring.create(tmp_path / KEYRING, JOB, KEK).path
    path = a_key_file(tmp_path / "keys/kek")
    old, new = renew(keyring, path)
    assert old.id == KEK.id != new.id
    assert read_kek(path).id == new.id
    assert [key.id for key in keks_beside(path)] == [new.id, KEK.id]
    assert read_kek(path.with_name(f"kek-{KEK.id}")).material == KEK.material
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}


def test_of_several_who_renew_at_once_each_wraps_under_the_key_that_stays(tmp_path: Path) -> None:
    """Each returns the old key.  It must open nothing any more, or destroying it would lose the data."""
    keyring = Keyring.create(tmp_path / KEYRING, JOB, KEK)
    path = a_key_file(tmp_path / "keys/kek")
    with ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(lambda _: renew(keyring.path, path), range(8)))
    assert len({old.id for old, _ in pairs}) == 8
    assert Keyring.open(keyring.path, JOB, [read_kek(path)]).keys[0].material == keyring.keys[0].material


def test_a_renewed_key_never_displaces_another_one(tmp_path: Path) -> None:
    keyring = Keyring.create(tmp_path / KEYRING, JOB, KEK).path
    path = a_key_file(tmp_path / "keys/kek")
    a_key_file(path.with_name(f"kek-{KEK.id}"), OTHER_KEK.material)
    with pytest.raises(ConfigError, match="another key"):
        renew(keyring, path)
    assert [key.id for key in keks_in(path.parent)] == [KEK.id, OTHER_KEK.id]


def test_a_crash_before_any_file_operation_of_a_rotation_leaves_a_key_that_opens(tmp_path: Path) -> None:
    a_key_file(tmp_path / "start/keys/kek")
    dek = Keyring.create(tmp_path / "start" / KEYRING, JOB, KEK).keys[0]

    def renew_until(place: Path, arm: Callable[[], None]) -> None:
        arm()
        renew(place / KEYRING, place / "keys/kek")

    under_old = []
    for place in crashes(tmp_path / "start", renew_until):
        keks = keks_beside(place / "keys/kek")
        assert Keyring.open(place / KEYRING, JOB, keks).keys[0].material == dek.material
        under_old.append(KEK.id in (place / KEYRING).read_text())
        finish_rotation(place, dek.material)
    assert len(under_old) > 11
    assert under_old == sorted(under_old, reverse=True)
    assert set(under_old) == {True, False}


def finish_rotation(place: Path, dek: bytes) -> None:
    """What a second rotation makes of a crashed one: nothing but keys that are read is left."""
    _, new = renew(place / KEYRING, place / "keys/kek")
    assert Keyring.open(place / KEYRING, JOB, [new]).keys[0].material == dek
    assert not list(place.glob("keys/*.partial-*"))


def test_shredding_destroys_what_a_crashed_rotation_left(tmp_path: Path) -> None:
    path = Keyring.create(tmp_path / KEYRING, JOB, KEK).path
    shutil.copy(path, tmp_path / f"{KEYRING}.partial-0")
    shred(path)
    assert [file.name for file in tmp_path.iterdir()] == [KEYRING]
    with pytest.raises(IntegrityError, match="was shredded"):
        rotate(path, [KEK], OTHER_KEK)


def test_what_is_no_key_beside_the_jobs_key_is_not_read(tmp_path: Path) -> None:
    path = a_key_file(tmp_path / "kek")
    a_key_file(tmp_path / "ca.crt", b"-----BEGIN CERTIFICATE-----")
    a_key_file(tmp_path / "kek-1.partial-0", b"")
    a_key_file(tmp_path / "kek-2", OTHER_KEK.material).chmod(0o644)
    assert [key.id for key in keks_beside(path)] == [KEK.id]
    assert [key.id for key in keks_in(tmp_path)] == [KEK.id]


def test_a_directory_in_which_nothing_is_a_key_says_what_is_wrong(tmp_path: Path) -> None:
    a_key_file(tmp_path / "ca.crt", b"-----BEGIN CERTIFICATE-----")
    with pytest.raises(IntegrityError, match="has 27 bytes, a key-encryption key has 32"):
        keks_in(tmp_path)


def test_a_keyring_of_another_job_is_not_rewrapped(tmp_path: Path) -> None:
    path = Keyring.create(tmp_path / KEYRING, "lab/other", KEK).path
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match="belongs to job lab/other"):
        JobKeys(path, JOB, [OTHER_KEK, KEK]).rotate()
    assert path.read_bytes() == before
