"""What stands for a pod's identity before a key server when a job runs on this machine."""

import json
import stat
from pathlib import Path

import pytest

from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from deepseek_trainer.storage.key_directory import keks_at
from deepseek_trainer.storage.keys import generate_kek
from dstj.jobfile import load_job
from dstj.local.claims import sources
from dstj.local.home import Home
from dstj.local.volumes import mount_all
from dstj.local.work import key_file
from support.builders.cli import a_job, job_file
from support.samples.api import CA, CA_SECRET, LOGIN, TOKEN, transit

KEYS = {"name": "keys", "projected": {"sources": []}}
POD = {"spec": {"volumes": [KEYS], "containers": [{"volumeMounts": [{"name": "keys", "mountPath": "/run/dstj/keys"}]}]}}


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.delenv("DSTJ_VAULT_TOKEN_FILE", raising=False)
    return Home(tmp_path / "state")


@pytest.fixture
def token(tmp_path):
    (tmp_path / "token").write_text("hvs.mine")
    (tmp_path / "token").chmod(0o600)
    return tmp_path / "token"


def served(tmp_path, home, token=None, **fields):
    """What the job mounts."""
    return sources(load_job(job_file(tmp_path, **transit(**fields))), home, (), token and str(token))


def a_file(path: Path, content: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def mounted(tmp_path, home, token, **fields):
    """The key directory of a job, as its processes find it."""
    root = home.job("tiny").directory
    mount_all(POD, root, served(tmp_path, home, token, **fields))
    return root / "run/dstj/keys"


def test_a_token_stands_for_the_service_account(tmp_path, home, token, monkeypatch):
    assert served(tmp_path, home, token).key_server.files == {"token": token}
    monkeypatch.setenv("DSTJ_VAULT_TOKEN_FILE", str(token))
    assert served(tmp_path, home).key_server.files == {"token": token}


def test_a_job_with_a_service_account_says_what_is_missing(tmp_path, home):
    with pytest.raises(ConfigError, match=r"no ServiceAccount") as caught:
        served(tmp_path, home)
    assert caught.value.hint == "log in, and give the token: --vault-token ~/.vault-token, or DSTJ_VAULT_TOKEN_FILE"
    with pytest.raises(ConfigError, match=r"no file .*/nowhere"):
        served(tmp_path, home, tmp_path / "nowhere")


def test_the_tokens_secret_is_found_where_keys_are_unless_another_one_is_given(tmp_path, home, token):
    with pytest.raises(ConfigError, match=r"no file .*secrets/tokens/token"):
        served(tmp_path, home, auth=TOKEN)
    kept = a_file(home.secret("tokens") / "token")
    assert served(tmp_path, home, auth=TOKEN).key_server.files == {"token": kept}
    assert served(tmp_path, home, token, auth=TOKEN).key_server.files == {"token": token}


@pytest.mark.parametrize(("ca", "place"), [(CA, "configmaps/ca/ca.crt"), (CA_SECRET, "secrets/ca/ca.crt")])
def test_the_ca_is_found_in_the_state_directory(tmp_path, home, token, ca, place):
    with pytest.raises(ConfigError, match=rf"no file .*{place}"):
        served(tmp_path, home, token, caCertificate=ca)
    kept = a_file(home.directory / place)
    assert served(tmp_path, home, token, caCertificate=ca).key_server.files["ca.crt"] == kept


def test_a_job_without_a_key_server_has_none(tmp_path, home):
    assert sources(load_job(job_file(tmp_path)), home).key_server is None


def test_the_token_is_linked_so_that_one_that_was_renewed_is_read(tmp_path, home, token):
    a_file(home.config_map("ca") / "ca.crt", "PEM")
    keys = mounted(tmp_path, home, token, caCertificate=CA)
    assert sorted(each.name for each in keys.iterdir()) == ["ca.crt", "token", "vault-transit.json"]
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    token.write_text("hvs.next")
    assert (keys / "token").read_text() == "hvs.next"
    mounted(tmp_path, home, token, caCertificate=CA)
    assert token.read_text() == "hvs.next"


def test_what_a_job_was_run_with_opens_its_volume_later(tmp_path, home, token):
    keys = mounted(tmp_path, home, token, auth=LOGIN)
    assert [kek.id for kek in keks_at(keys)] == ["vault-transit:transit/training"]
    place = home.job("tiny")
    place.status_file.write_text(json.dumps(a_job(**transit()) | {"status": {}}))
    assert key_file(home, place) == keys / "vault-transit.json"


def test_a_directory_with_keys_is_not_taken_for_a_server(tmp_path):
    key = generate_kek(tmp_path / "keys/kek")
    assert [kek.id for kek in keks_at(tmp_path / "keys")] == [key.id]
    with pytest.raises(IntegrityError):
        keks_at(tmp_path / "nowhere")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"address": "http://10.0.0.1:8200"}', "[" * 10_000])
def test_a_directory_whose_server_is_none_says_so(tmp_path, content):
    a_file(tmp_path / "vault-transit.json", content)
    with pytest.raises(ConfigError, match=r"vault-transit.json is no key server"):
        keks_at(tmp_path)
