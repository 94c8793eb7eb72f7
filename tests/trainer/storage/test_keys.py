"""Key files and the keyring: refused when wrong, and never shown."""

import json
import logging
import os
import pickle
import stat
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.storage import keys
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.keyring import Keyring, owner_of
from deepseek_trainer.storage.keys import Key, generate_kek, keks_in, read_kek
from deepseek_trainer.storage.rotation import rotate, shred
from support.builders.keyrings import a_keyring
from support.builders.vault import JOB, KEK, OTHER_KEK, a_key_file


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring.create(tmp_path / "keyring.json", JOB, KEK)


def test_a_generated_key_is_private_and_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "secrets" / "kek"
    key = generate_kek(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert read_kek(path).material == key.material
    assert read_kek(path).id == key.id


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    key = generate_kek(tmp_path / "kek")
    with pytest.raises(ConfigError, match="never overwritten"):
        generate_kek(tmp_path / "kek")
    assert read_kek(tmp_path / "kek").id == key.id
    assert [path.name for path in tmp_path.iterdir()] == ["kek"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660, 0o604, 0o440])
def test_a_key_of_ours_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(IntegrityError, match=f"mode {mode:04o}.*chmod 600"):
        read_kek(a_key_file(tmp_path / "kek", mode=mode))


@pytest.mark.parametrize(("mode", "is_accepted"), [(0o440, True), (0o400, True), (0o460, False), (0o444, False)])
def test_a_mounted_key_of_another_user_may_be_readable_by_our_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, is_accepted: bool
) -> None:
    path = a_key_file(tmp_path / "kek", mode=mode)
    owner = path.stat().st_uid
    monkeypatch.setattr(keys.os, "geteuid", lambda: owner + 1000)
    owned_by(monkeypatch, 0)
    if is_accepted:
        assert read_kek(path).id == KEK.id
    else:
        with pytest.raises(IntegrityError, match="others than its owner"):
            read_kek(path)


def test_a_key_of_another_user_than_root_and_us_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_key_file(tmp_path / "kek", mode=0o400)
    monkeypatch.setattr(keys.os, "geteuid", lambda: 10001)
    owned_by(monkeypatch, 10002)
    with pytest.raises(IntegrityError, match=r"kek belongs to user 10002.*chown"):
        read_kek(path)
    owned_by(monkeypatch, 10001)
    assert read_kek(path).id == KEK.id


def owned_by(monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    """Let every open file seem to belong to `user`."""
    real = os.stat

    def status(file: int) -> os.stat_result:
        fields = list(real(file))
        fields[stat.ST_UID] = user
        return os.stat_result(fields)

    monkeypatch.setattr(keys.os, "fstat", status)


def test_a_key_is_read_through_the_links_of_a_mounted_secret(tmp_path: Path) -> None:
    version = tmp_path / "..2026_11_21"
    version.mkdir()
    a_key_file(version / "kek")
    (tmp_path / "..data").symlink_to(version.name)
    (tmp_path / "kek").symlink_to("..data/kek")
    assert read_kek(tmp_path / "kek").id == KEK.id
    assert [key.id for key in keks_in(tmp_path)] == [KEK.id]


def test_a_missing_key_is_refused_with_the_command_that_makes_one(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match=r"kek: No such file.*dstj keys generate"):
        read_kek(tmp_path / "kek")
    with pytest.raises(IntegrityError, match="nowhere: No such file"):
        keks_in(tmp_path / "nowhere")


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_is_no_key_and_hangs_nobody(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "kek")
    with pytest.raises(IntegrityError, match=r"is a (FIFO|directory|device)"):
        read_kek(tmp_path / "kek")
    a_key_file(tmp_path / "other", OTHER_KEK.material)
    assert [key.id for key in keks_in(tmp_path)] == [OTHER_KEK.id]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "has 0 bytes"),
        (bytes(31), "has 31 bytes"),
        (bytes(33), "has 33 bytes"),
        (b"ab" * 32, "has 64 bytes.*raw bytes, not text"),
        (b"A" * 1000, "has more than 127 bytes"),
    ],
)
def test_a_key_of_another_length_is_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(IntegrityError, match=problem):
        read_kek(a_key_file(tmp_path / "kek", content))


def test_a_keyring_opens_under_its_key(keyring: Keyring) -> None:
    again = Keyring.open(keyring.path, JOB, [OTHER_KEK, KEK])
    assert again.keys[0].material == keyring.keys[0].material


def test_a_wrong_key_is_refused_with_the_ids_of_both(keyring: Keyring) -> None:
    with pytest.raises(IntegrityError, match=f"wrong key.*{KEK.id}, given: {OTHER_KEK.id}"):
        Keyring.open(keyring.path, JOB, [OTHER_KEK])


def test_a_keyring_of_another_job_is_refused(keyring: Keyring) -> None:
    with pytest.raises(IntegrityError, match="belongs to job lab/demo, not to lab/other"):
        Keyring.open(keyring.path, "lab/other", [KEK])


def test_rotation_keeps_the_data_key_and_needs_the_new_one(keyring: Keyring) -> None:
    created = json.loads(keyring.path.read_text())["keys"][0]["created"]
    assert rotate(keyring.path, [KEK], OTHER_KEK)
    assert json.loads(keyring.path.read_text())["keys"][0]["created"] == created
    assert Keyring.open(keyring.path, JOB, [OTHER_KEK]).keys[0].material == keyring.keys[0].material
    with pytest.raises(IntegrityError, match="wrong key"):
        Keyring.open(keyring.path, JOB, [KEK])
    assert [path.name for path in keyring.path.parent.iterdir()] == ["keyring.json"]


def test_the_primary_of_several_data_keys_comes_first(tmp_path: Path) -> None:
    keys = [Key.random() for _ in range(4)]
    path = a_keyring(tmp_path, keys=keys).path
    assert rotate(path, [KEK], OTHER_KEK)
    assert [key.id for key in Keyring.open(path, JOB, [OTHER_KEK]).keys] == [key.id for key in keys]


def test_a_shredded_keyring_says_so_and_holds_nothing(keyring: Keyring) -> None:
    (wrapped,) = json.loads(keyring.path.read_text())["recipients"][0]["wrapped"].values()
    assert shred(keyring.path) == []
    assert wrapped not in keyring.path.read_text()
    with pytest.raises(IntegrityError, match="was shredded"):
        Keyring.open(keyring.path, JOB, [KEK])
    with pytest.raises(IntegrityError, match="was shredded"):
        JobKeys(keyring.path, JOB, [KEK])


def test_ranks_that_make_the_keyring_at_once_agree_on_one_key(tmp_path: Path) -> None:
    made: list[str] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        made.append(JobKeys(tmp_path / "keyring.json", JOB, [KEK]).to_seal().id)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert owner_of(tmp_path / "keyring.json") == JOB


def test_reading_does_not_make_a_keyring(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="no keyring"):
        JobKeys(tmp_path / "keyring.json", JOB, [KEK]).to_read()
    assert not (tmp_path / "keyring.json").exists()


def test_a_wrong_key_is_refused_before_anything_is_read_or_written(keyring: Keyring) -> None:
    with pytest.raises(IntegrityError, match="wrong key"):
        JobKeys(keyring.path, JOB, [OTHER_KEK])


def test_no_key_byte_is_shown_anywhere(keyring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    shown = [repr(KEK), str(KEK), repr(keyring), repr(JobKeys(keyring.path, JOB, [KEK]))]
    with caplog.at_level(logging.DEBUG):
        for open_wrongly in (
            lambda: Keyring.open(keyring.path, JOB, [OTHER_KEK]),
            lambda: Keyring.open(keyring.path, "lab/other", [KEK]),
            lambda: pickle.dumps(KEK),
        ):
            with pytest.raises((IntegrityError, TypeError)) as caught:
                open_wrongly()
            shown += traceback.format_exception(caught.value)
    shown += [record.getMessage() for record in caplog.records]
    everything = "".join(shown)
    for key in (KEK, OTHER_KEK, keyring.keys[0]):
        for form in (key.material.hex(), repr(key.material), str(list(key.material)), key.material.hex()[:16]):
            assert form not in everything
        assert key.id not in key.material.hex()
