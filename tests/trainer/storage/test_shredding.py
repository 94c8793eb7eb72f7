"""What shredding and rotating destroy: a job's own keyrings, and nothing that only has such a name."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import IntegrityError
from deepseek_trainer.storage import owned, rotation
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from deepseek_trainer.storage.keys import keks_in, read_kek
from deepseek_trainer.storage.rotation import renew, rotate, shred
from support.builders.keyrings import a_keyring
from support.builders.vault import JOB, KEK, OTHER_KEK, a_key_file

LEFTOVER = f"{KEYRING}.partial-x"


def a_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def a_hard_link(path: Path, outside: Path) -> None:
    path.hardlink_to(outside)


def a_link_to_nothing(path: Path, _: Path) -> None:
    path.symlink_to("nowhere")


def a_link_to_a_device(path: Path, _: Path) -> None:
    path.symlink_to("/dev/zero")


def a_directory(path: Path, _: Path) -> None:
    path.mkdir()
    (path / "theirs").write_bytes(b"theirs")


def a_fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path, _: Path) -> None:
    where = Path.cwd()
    os.chdir(path.parent)  # its path may be too long for a socket
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path.name)
    os.chdir(where)


def a_file_that_is_no_keyring(path: Path, _: Path) -> None:
    path.write_bytes(b"my notes about the keyring")


def a_large_file(path: Path, _: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def a_keyring_of_another_job(path: Path, _: Path) -> None:
    path.write_bytes(a_keyring(path.parent.parent / "other", job="lab/other").path.read_bytes())


FOREIGN = pytest.mark.parametrize(
    "make",
    [
        a_link,
        a_hard_link,
        a_link_to_nothing,
        a_link_to_a_device,
        a_directory,
        a_fifo,
        a_socket,
        a_file_that_is_no_keyring,
        a_large_file,
        a_keyring_of_another_job,
    ],
    ids=lambda make: make.__name__,
)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A keyring of the same job, in another place of the same file system."""
    return a_keyring(tmp_path / "outside").path


@pytest.fixture
def keyring(tmp_path: Path) -> Path:
    return a_keyring(tmp_path / "work").path


def seen(path: Path) -> object:
    status = path.lstat()
    content = path.read_bytes() if path.is_file() and status.st_size < 1 << 20 else b""
    return status.st_ino, status.st_mode, status.st_nlink, status.st_size, content


@FOREIGN
def test_shredding_leaves_alone_what_is_not_the_jobs_and_names_it(
    keyring: Path, outside: Path, make: Callable[[Path, Path], None]
) -> None:
    make(keyring.with_name(LEFTOVER), outside)
    before = seen(keyring.with_name(LEFTOVER)), seen(outside)
    assert shred(keyring) == [LEFTOVER]
    assert (seen(keyring.with_name(LEFTOVER)), seen(outside)) == before
    with pytest.raises(IntegrityError, match="was shredded"):
        Keyring.open(keyring, JOB, [KEK])


@FOREIGN
def test_rotation_leaves_alone_what_is_not_the_jobs(
    keyring: Path, outside: Path, make: Callable[[Path, Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rotation, "_SETTLED", -1e9)  # however young it is
    make(keyring.with_name(LEFTOVER), outside)
    before = seen(keyring.with_name(LEFTOVER)), seen(outside)
    assert rotate(keyring, [KEK], OTHER_KEK)
    assert (seen(keyring.with_name(LEFTOVER)), seen(outside)) == before


def test_a_keyring_that_is_a_link_or_has_other_names_is_not_shredded(keyring: Path, outside: Path) -> None:
    before = outside.read_bytes()
    keyring.unlink()
    for make in (a_link, a_hard_link):
        make(keyring, outside)
        with pytest.raises(IntegrityError):
            shred(keyring)
        assert outside.read_bytes() == before
        keyring.unlink()


def test_a_link_within_the_volume_is_not_shredded(keyring: Path) -> None:
    other = keyring.rename(keyring.with_name("other"))
    before = other.read_bytes()
    keyring.symlink_to("other")
    with pytest.raises(IntegrityError, match=r"is a link.*left alone"):
        shred(keyring)
    assert other.read_bytes() == before


def test_shredding_destroys_what_crashes_left(keyring: Path) -> None:
    """One keyring that was to replace another, and one that had not yet lost its first name."""
    left = keyring.with_name(f"{KEYRING}.partial-{'a' * 32}")
    left.write_bytes(keyring.read_bytes())
    keyring.with_name(f"{KEYRING}.partial-{'b' * 32}").hardlink_to(keyring)
    with left.open("rb") as leftover, keyring.open("rb") as old:
        assert shred(keyring) == []
        assert not any(leftover.read())
        assert not any(old.read())
    assert [file.name for file in keyring.parent.iterdir()] == [KEYRING]


def test_rotation_destroys_what_crashes_left_long_ago(keyring: Path) -> None:
    left = keyring.with_name(f"{KEYRING}.partial-{'a' * 32}")
    left.write_bytes(keyring.read_bytes())
    keyring.with_name(f"{KEYRING}.partial-{'b' * 32}").hardlink_to(keyring)
    for each in (left, keyring):
        os.utime(each, (0, each.stat().st_mtime - 4000))
    with left.open("rb") as leftover, keyring.open("rb") as old:
        assert rotate(keyring, [KEK], OTHER_KEK)
        assert not any(leftover.read())
        assert not any(old.read())
    assert [file.name for file in keyring.parent.iterdir()] == [KEYRING]
    assert Keyring.open(keyring, JOB, [OTHER_KEK])


def test_what_belongs_to_another_user_is_left_alone(keyring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = keyring.with_name(LEFTOVER)
    left.write_bytes(keyring.read_bytes())
    before = left.read_bytes()
    owner = left.stat().st_uid
    real = os.stat

    def status(name: object, **options: object) -> os.stat_result:
        found = real(name, **options)  # type: ignore[call-overload]
        return os.stat_result((*found[:4], owner + 1, *found[5:])) if name == LEFTOVER else found

    monkeypatch.setattr(owned.os, "geteuid", lambda: owner or 10001)
    monkeypatch.setattr(owned.os, "stat", status)
    assert shred(keyring) == [LEFTOVER]
    assert left.read_bytes() == before


def test_a_name_that_becomes_a_link_before_it_is_opened_is_not_followed(
    keyring: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, before, real = keyring.with_name(LEFTOVER), outside.read_bytes(), os.open
    left.write_bytes(keyring.read_bytes())

    def swapped(name: object, *arguments: object, **options: object) -> int:
        if name == LEFTOVER:
            left.unlink()
            left.symlink_to(outside)
        return real(name, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(owned.os, "open", swapped)
    assert shred(keyring) == [LEFTOVER]
    assert outside.read_bytes() == before


@pytest.mark.parametrize("name", ["kek.partial-mine", "kek.partial-" + "0" * 32, "kek-old", ".kek"])
def test_rotation_deletes_no_key_whatever_its_name(keyring: Path, tmp_path: Path, name: str) -> None:
    path = a_key_file(tmp_path / "keys/kek")
    theirs = a_key_file(tmp_path / "keys" / name, OTHER_KEK.material)
    _, new = renew(keyring, path)
    assert theirs.read_bytes() == OTHER_KEK.material
    assert read_kek(path).id == new.id
    assert {key.id for key in keks_in(path.parent)} >= {new.id, KEK.id}


@pytest.mark.parametrize("make", [a_link, a_directory, a_fifo], ids=lambda make: make.__name__)
def test_what_is_in_the_way_of_a_new_key_is_left_alone(
    keyring: Path, outside: Path, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    path = a_key_file(tmp_path / "keys/kek")
    make(path.with_name(".kek.partial"), outside)
    before = seen(path.with_name(".kek.partial")), outside.read_bytes()
    with pytest.raises(IntegrityError, match="left alone"):
        renew(keyring, path)
    assert (seen(path.with_name(".kek.partial")), outside.read_bytes()) == before
    assert Keyring.open(keyring, JOB, [read_kek(path)])
