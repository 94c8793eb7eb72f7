"""`dstj keys`, where a server keeps the key: three files in a directory stand for it."""

import json
import shutil

import pytest

from deepseek_trainer.storage import vault_transit
from deepseek_trainer.storage.job_keys import JobKeys
from deepseek_trainer.storage.key_directory import keks_at, key_server
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from deepseek_trainer.storage.vault import Purpose, Vault
from dstj.local.store import store
from support.builders.cli import a_job, job_home
from support.builders.keyrings import a_keyring
from support.builders.vault import JOB, KEK, a_key_file
from support.fakes.vault_server import vault_server
from support.samples.api import CA, LOGIN, transit


@pytest.fixture
def server(place):
    with vault_server(place / "certificates") as running:
        yield running


@pytest.fixture
def key_dir(place, server):
    return a_key_directory(place / "server-keys", server)


def a_key_directory(directory, server):
    directory.mkdir(parents=True)
    shutil.copy(server.ca, directory / "ca.crt")
    (directory / "token").write_text("hvs.good")
    (directory / "token").chmod(0o600)
    fields = {"address": server.address, "keyName": "training", "auth": LOGIN, "caCertificate": CA}
    (directory / "vault-transit.json").write_text(json.dumps(fields))
    return directory


def opens(place, directory):
    return Keyring.open(place / "work" / KEYRING, JOB, keks_at(directory)).keys


def test_a_volume_moves_from_a_file_to_a_server(run_dstj, place, server, key_dir, capsys):
    a_key_file(place / "old/kek")
    keys = a_keyring(place / "work").keys
    moving = ["--directory", "work", "--key-dir", "old", "--new-key-dir", "server-keys"]
    assert run_dstj("keys", "rotate", *moving) == 0
    assert "key vault-transit:transit/training wraps the data key" in capsys.readouterr().out
    assert [key.id for key in opens(place, key_dir)] == [key.id for key in keys]
    assert run_dstj("keys", "inspect", "--directory", "work", "--key-dir", "old") == 0
    assert "vault-transit:transit/training" in capsys.readouterr().out


def test_a_server_is_granted_and_revoked_like_any_key(run_dstj, place, server, key_dir):
    a_key_file(place / "keys/kek")
    a_keyring(place / "work")
    ours = ["--directory", "work", "--key-dir", "keys"]
    assert run_dstj("keys", "grant", *ours, "--kek", "server-keys/vault-transit.json") == 0
    assert opens(place, key_dir)[0].material == opens(place, place / "keys")[0].material
    assert run_dstj("keys", "revoke", "--directory", "work", "--key-dir", "server-keys", "--kek-id", KEK.id) == 0
    assert opens(place, key_dir)


def test_inspect_shows_the_server_and_whether_it_opens_the_keyring(run_dstj, place, server, key_dir, capsys):
    Keyring.create(place / "work" / KEYRING, JOB, *keks_at(key_dir))
    asked = ["keys", "inspect", "--directory", "work", "--key-dir", "server-keys"]
    assert run_dstj(*asked) == 0
    shown = capsys.readouterr().out
    assert "authentic: vault-transit:transit/training opens it" in shown
    assert "vault-transit.json" in shown
    assert "hvs.good" not in shown


def retires_old_versions(server):
    server.keys["training"].oldest = len(server.keys["training"].versions)


def test_rotate_wraps_anew_under_the_newest_version_of_the_servers_key(run_dstj, place, server, key_dir):
    dek = Keyring.create(place / "work" / KEYRING, JOB, *keks_at(key_dir)).keys[0].material
    server.keys["training"].rotate()
    assert run_dstj("keys", "rotate", "--directory", "work", "--key-dir", "server-keys") == 0
    retires_old_versions(server)
    assert opens(place, a_key_directory(place / "again", server))[0].material == dek


def test_rotate_does_so_for_a_local_job_too(run_dstj, place, server, capsys):
    home = job_home()
    store(home, a_job(**transit()) | {"status": {}})
    keks = keks_at(a_key_directory(home.paths.key_dir, server))
    Keyring.create(home.paths.work / KEYRING, "default/tiny", *keks)
    server.keys["training"].rotate()
    assert run_dstj("keys", "rotate", "tiny") == 0
    assert capsys.readouterr().out == (
        "default/tiny: the newest version of vault-transit:transit/training wraps the data key\n"
    )
    retires_old_versions(server)
    assert Keyring.open(home.paths.work / KEYRING, "default/tiny", keks_at(a_key_directory(place / "again", server)))


def test_doctor_takes_no_token_for_a_key(run_dstj, place, capsys):
    (place / ".dstj/secrets/tokens").mkdir(parents=True)
    (place / ".dstj/secrets/tokens/token").write_text("hvs.good")
    run_dstj("doctor")
    assert "tokens" not in capsys.readouterr().out


def test_doctor_looks_for_the_token_and_takes_the_servers_files_for_what_they_are(
    run_dstj, place, server, capsys, monkeypatch
):
    home = job_home()
    store(home, a_job(**transit()) | {"status": {}})
    keys = a_key_directory(place / "elsewhere", server)
    home.paths.key_dir.mkdir(parents=True)
    (home.paths.key_dir / "vault-transit.json").write_text((keys / "vault-transit.json").read_text())
    for name in ("token", "ca.crt"):
        (home.paths.key_dir / name).symlink_to(keys / name)
    work = home.paths.work
    (work / "prepared").mkdir(parents=True)
    ring = JobKeys(work / KEYRING, "default/tiny", keks_at(home.paths.key_dir))
    Vault("default/tiny", Purpose.DATA, ring).write(work / "prepared" / "rows", b"x" * 5000)
    assert run_dstj("doctor", "--sealed", "tiny") == 0
    shown = capsys.readouterr().out
    assert "1 of 1 sealed files authenticate" in shown
    home.logs.mkdir()
    (home.logs / "tiny-a1-0").mkdir()
    (home.logs / "tiny-a1-0/trainer.log").write_text("it said hvs.good to the server")
    assert run_dstj("doctor", "--sealed", "tiny") == 77
    shown = capsys.readouterr().out
    assert "the key server's token" in shown
    assert "hvs.good" not in shown
    server.is_sealed = True
    monkeypatch.setattr(vault_transit, "PAUSES_S", ())
    key_server.cache_clear()
    assert run_dstj("doctor", "--sealed", "tiny") == 77
    assert "is sealed or in maintenance" in capsys.readouterr().out
