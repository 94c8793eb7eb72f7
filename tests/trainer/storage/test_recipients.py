"""Several key-encryption keys that open one keyring, each without knowing the others."""

import multiprocessing
import os
from collections.abc import Callable
from itertools import groupby
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import pytest

from deepseek_trainer.contract.errors import ConfigError, IntegrityError, TryAgainError
from deepseek_trainer.storage import owned
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.kek import UnwrapError
from deepseek_trainer.storage.keyring import KEYRING, Keyring, read_keyring
from deepseek_trainer.storage.keys import Key
from deepseek_trainer.storage.rotation import grant, revoke, rotate
from support.builders.keyrings import a_keyring, a_keyring_1, content_of
from support.builders.vault import JOB, KEK, OTHER_KEK, a_vault
from support.faults.crashes import crashes

ESCROW, NEW = Key.random(), Key.random()


def material(path: Path, kek: Any) -> bytes:
    return Keyring.open(path, JOB, [kek]).keys[0].material


def test_an_escrow_key_opens_what_the_job_sealed_without_the_jobs_key(tmp_path: Path) -> None:
    a_vault(tmp_path).write(tmp_path / "file", b"private")
    assert grant(tmp_path / KEYRING, [KEK], ESCROW)
    assert a_vault(tmp_path, kek=ESCROW).read(tmp_path / "file") == b"private"
    assert a_vault(tmp_path, kek=KEK).read(tmp_path / "file") == b"private"
    assert read_keyring(tmp_path / KEYRING).keks == (KEK.id, ESCROW.id)


def test_a_grant_needs_a_key_that_opens(tmp_path: Path) -> None:
    path = a_keyring(tmp_path).path
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match=f"wrong key.*{KEK.id}, given: {OTHER_KEK.id}"):
        grant(path, [OTHER_KEK], ESCROW)
    with pytest.raises(IntegrityError, match="given: none"):
        grant(path, [], KEK)
    assert path.read_bytes() == before


def test_a_second_grant_to_the_same_key_writes_nothing(tmp_path: Path) -> None:
    path = a_keyring(tmp_path, keks=[KEK, ESCROW]).path
    before = path.read_bytes()
    assert not grant(path, [KEK], ESCROW)
    assert path.read_bytes() == before


def test_whoever_may_open_may_grant_and_every_recipient_checks_it(tmp_path: Path) -> None:
    ring = a_keyring(tmp_path, keks=[KEK, ESCROW])
    assert grant(ring.path, [ESCROW], NEW)
    assert {material(ring.path, kek) for kek in (KEK, ESCROW, NEW)} == {ring.keys[0].material}


def test_a_revoked_key_opens_no_longer_and_the_others_do(tmp_path: Path) -> None:
    ring = a_keyring(tmp_path, keks=[KEK, ESCROW])
    revoke(ring.path, [KEK], ESCROW.id)
    with pytest.raises(IntegrityError, match="wrong key"):
        material(ring.path, ESCROW)
    assert material(ring.path, KEK) == ring.keys[0].material


def test_the_last_key_is_not_revoked_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    path = a_keyring(tmp_path).path
    with pytest.raises(ConfigError, match=r"last key that opens .*dstj keys shred"):
        revoke(path, [KEK], KEK.id)
    with pytest.raises(ConfigError, match=f"{ESCROW.id} does not open .*these do: {KEK.id}"):
        revoke(path, [KEK], ESCROW.id)
    assert material(path, KEK)


def test_rotation_replaces_the_recipient_that_opened_and_keeps_the_others(tmp_path: Path) -> None:
    ring = a_keyring(tmp_path, keks=[KEK, ESCROW, OTHER_KEK])
    escrowed = content_of(ring.path)["recipients"][1]
    assert rotate(ring.path, [ESCROW], NEW)
    assert read_keyring(ring.path).keks == (KEK.id, NEW.id, OTHER_KEK.id)
    assert rotate(ring.path, [NEW], ESCROW)
    assert rotate(ring.path, [OTHER_KEK, KEK], NEW)
    assert read_keyring(ring.path).keks == (NEW.id, ESCROW.id, OTHER_KEK.id)
    assert content_of(ring.path)["recipients"][1] != escrowed


def test_recipients_that_stay_are_not_wrapped_anew(tmp_path: Path) -> None:
    ring = a_keyring(tmp_path, keks=[KEK, ESCROW])
    before = content_of(ring.path)["recipients"][1]
    assert rotate(ring.path, [KEK], NEW)
    assert content_of(ring.path)["recipients"][1] == before


def test_each_of_several_data_keys_is_wrapped_for_each_recipient(tmp_path: Path) -> None:
    keys = [Key.random(), Key.random()]
    path = a_keyring(tmp_path, keys=keys).path
    grant(path, [KEK], ESCROW)
    assert [key.material for key in Keyring.open(path, JOB, [ESCROW]).keys] == [key.material for key in keys]


def old_bytes_after(path: Path, change: Callable[[], object]) -> bytes:
    with path.open("rb") as old:
        change()
        assert not os.path.samestat(os.fstat(old.fileno()), path.stat())
        return old.read()


@pytest.mark.parametrize("change", ["rotate", "grant", "revoke"])
def test_the_old_keyring_s_bytes_are_overwritten(tmp_path: Path, change: str) -> None:
    path = a_keyring(tmp_path, keks=[KEK, OTHER_KEK]).path
    changes: dict[str, Callable[[], object]] = {
        "rotate": lambda: rotate(path, [KEK], NEW),
        "grant": lambda: grant(path, [KEK], NEW),
        "revoke": lambda: revoke(path, [KEK], OTHER_KEK.id),
    }
    size = path.stat().st_size
    assert old_bytes_after(path, changes[change]) == bytes(size)


def test_a_backup_by_hard_links_is_not_overwritten(tmp_path: Path) -> None:
    path = a_keyring(tmp_path / "work").path
    before = path.read_bytes()
    (tmp_path / "backup").hardlink_to(path)
    assert rotate(path, [KEK], NEW)
    assert (tmp_path / "backup").read_bytes() == before
    assert material(path, NEW)


def test_a_crash_before_any_file_operation_of_a_change_leaves_a_keyring_that_opens(tmp_path: Path) -> None:
    dek = a_keyring(tmp_path / "start", keks=[KEK, OTHER_KEK]).keys[0].material

    def change(place: Path, arm: Callable[[], None]) -> None:
        arm()
        grant(place / KEYRING, [KEK], ESCROW)
        revoke(place / KEYRING, [KEK], OTHER_KEK.id)

    seen = []
    for place in crashes(tmp_path / "start", change):
        assert material(place / KEYRING, KEK) == dek
        seen.append(len(read_keyring(place / KEYRING).keks))
    assert [number for number, _ in groupby(seen)] == [2, 3, 2]


def rotate_for_ever(path: Path, stop: Event) -> None:
    keks = [KEK, NEW]
    while not stop.is_set():
        assert rotate(path, [keks[0]], keks[1])
        keks.reverse()


def test_who_reads_while_others_rotate_always_reads_a_whole_keyring(tmp_path: Path) -> None:
    """The old one is overwritten, perhaps while it is read."""
    ring = a_keyring(tmp_path)
    fork = multiprocessing.get_context("fork")
    stop = fork.Event()
    rotating = fork.Process(target=rotate_for_ever, args=(ring.path, stop))
    rotating.start()
    try:
        for _ in range(300):
            assert Keyring.open(ring.path, JOB, [KEK, NEW]).keys[0].material == ring.keys[0].material
    finally:
        stop.set()
        rotating.join()
    assert rotating.exitcode == 0


def test_what_another_node_may_be_about_to_put_in_place_is_not_overwritten(tmp_path: Path) -> None:
    """Locks do not reach from node to node on every file system."""
    path = a_keyring(tmp_path).path
    theirs = tmp_path / f"{KEYRING}.partial-0"
    theirs.write_bytes(path.read_bytes())
    assert rotate(path, [KEK], NEW)
    theirs.replace(path)
    assert Keyring.open(path, JOB, [KEK])


def rewrap(path: Path, own: Key, start: Barrier) -> None:
    owned.fcntl.flock = lambda *_: None
    start.wait()
    for _ in range(20):
        rotate(path, [KEK, OTHER_KEK, NEW, ESCROW], own)


def test_nodes_that_rotate_at_once_without_locks_leave_a_keyring_that_opens(tmp_path: Path) -> None:
    path, keks = a_keyring(tmp_path).path, (KEK, OTHER_KEK, NEW, ESCROW)
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(len(keks))
    nodes = [fork.Process(target=rewrap, args=(path, kek, start)) for kek in keks]
    for node in nodes:
        node.start()
    for node in nodes:
        node.join()
    assert [node.exitcode for node in nodes] == [0] * len(keks)
    assert Keyring.open(path, JOB, keks)


class ServerKek:
    """A key-encryption key that stays on a server, which only answers."""

    def __init__(self, *, is_up: bool = True) -> None:
        self.id, self.is_up = "vault-transit:https://vault.example:8200/transit/keys/lab", is_up
        self._kept: dict[bytes, tuple[bytes, bytes]] = {}

    def wrap(self, dek: bytes, context: bytes) -> bytes:
        name = f"vault:v1:{len(self._kept)}".encode()
        self._kept[name] = (dek, context)
        return name

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        if not self.is_up:
            raise TryAgainError("https://vault.example:8200 does not answer")
        dek, bound_to = self._kept.get(wrapped, (b"", b""))
        if bound_to != context or not dek:
            raise UnwrapError
        return dek


def test_a_key_whose_bytes_nobody_has_opens_a_keyring_alone_and_beside_others(tmp_path: Path) -> None:
    server = ServerKek()
    key = JobKeys(tmp_path / KEYRING, JOB, [server]).to_seal()
    assert material(tmp_path / KEYRING, server) == key.material
    assert grant(tmp_path / KEYRING, [server], KEK)
    assert rotate(tmp_path / KEYRING, [KEK], NEW)
    assert read_keyring(tmp_path / KEYRING).keks == (server.id, NEW.id)
    assert rotate(tmp_path / KEYRING, [server], KEK)
    assert read_keyring(tmp_path / KEYRING).keks == (KEK.id, NEW.id)


def test_a_server_that_is_down_is_worth_another_try(tmp_path: Path) -> None:
    server = ServerKek()
    JobKeys(tmp_path / KEYRING, JOB, [server]).to_seal()
    server.is_up = False
    with pytest.raises(TryAgainError, match="does not answer"):
        JobKeys(tmp_path / KEYRING, JOB, [server])


def test_a_key_of_a_server_opens_no_keyring_of_format_1(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="wrong key"):
        Keyring.open(a_keyring_1(tmp_path), JOB, [ServerKek()])
