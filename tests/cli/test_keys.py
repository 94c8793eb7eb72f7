"""`dstj keys`: keys are made private, never shown, never overwritten."""

import pytest

from cli_builders import a_job, job_home
from deepseek_trainer.keys import Keyring, read_kek
from dstj.store import store


def test_generate_makes_a_private_key_and_says_how_a_cluster_gets_it(run_dstj, place, capsys):
    assert run_dstj("keys", "generate", "--secret", "my-key") == 0
    path = place / ".dstj/secrets/my-key/kek"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    shown = capsys.readouterr().out
    assert f"key {read_kek(path).id} in {path}" in shown
    assert f"kubectl create secret generic my-key --from-file=kek={path}" in shown


def test_generate_never_shows_the_key(run_dstj, place, capsys):
    run_dstj("keys", "generate", "--secret", "my-key")
    shown, key = capsys.readouterr().out, (place / ".dstj/secrets/my-key/kek").read_bytes()
    assert key.hex() not in shown
    assert repr(key)[2:-1] not in shown


def test_generate_never_overwrites_a_key(run_dstj, place, capsys):
    run_dstj("keys", "generate", "--secret", "my-key")
    before = (place / ".dstj/secrets/my-key/kek").read_bytes()
    assert run_dstj("keys", "generate", "--secret", "my-key") == 64
    assert (place / ".dstj/secrets/my-key/kek").read_bytes() == before
    assert "a key is never overwritten" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--secret", "../x"], ["--secret", "x", "--key", "../y"], ["--secret", "x", "--key", ".y"]]
)
def test_generate_stays_in_the_secrets_directory(run_dstj, place, options):
    assert run_dstj("keys", "generate", *options) == 64
    assert not (place / ".dstj").exists()


@pytest.fixture
def sealed_job(run_dstj, place):
    """A job with a keyring."""
    run_dstj("keys", "generate", "--secret", "s")
    home = job_home()
    store(home, a_job() | {"status": {}})
    Keyring.create(home.paths.work / "keyring.json", "default/tiny", read_kek(place / ".dstj/secrets/s/kek"))
    return home.paths.work / "keyring.json"


def test_shred_asks_before_it_destroys(run_dstj, sealed_job, capsys):
    before = sealed_job.read_bytes()
    assert run_dstj("keys", "shred", "tiny") == 64
    assert "dstj keys shred tiny --yes" in capsys.readouterr().err
    assert sealed_job.read_bytes() == before


def test_shred_destroys_the_data_key(run_dstj, sealed_job, capsys):
    assert run_dstj("keys", "shred", "tiny", "--yes") == 0
    assert run_dstj("keys", "shred", "tiny", "--yes") == 77
    assert "was shredded" in capsys.readouterr().err


def test_shred_waits_for_no_running_job(run_dstj, sealed_job):
    with job_home().locked():
        assert run_dstj("keys", "shred", "tiny", "--yes") == 75


def test_shred_of_a_job_in_the_clear_is_refused(run_dstj, place, capsys):
    store(job_home(), a_job() | {"status": {}})
    assert run_dstj("keys", "shred", "tiny", "--yes") == 64
    assert "nothing of it is sealed" in capsys.readouterr().err
