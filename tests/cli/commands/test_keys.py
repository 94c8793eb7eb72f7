"""`dstj keys`: keys are made private, never shown, never overwritten."""

import resource

import pytest

from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.storage.keyring import KEYRING, Keyring
from deepseek_trainer.storage.keys import generate_kek, read_kek
from dstj.local.store import store
from support.builders.cli import a_job, job_home
from support.builders.keyrings import a_keyring_1
from support.builders.vault import a_key_file, a_state, a_vault


def test_generate_makes_a_private_key_and_says_how_a_cluster_gets_it(run_dstj, place, capsys):
    assert run_dstj("keys", "generate", "--secret", "my-key") == 0
    path = place / ".dstj/secrets/my-key/kek"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    shown = capsys.readouterr().out
    assert f"key {read_kek(path).id} is in {path}" in shown
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
    store(home, a_job(checkpoint={"encryption": {"keyRef": {"secretName": "s"}}}) | {"status": {}})
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


def test_shred_of_a_volume_destroys_its_data_key(run_dstj, volume, capsys):
    words = ("keys", "shred", "--directory", volume / "work")
    before = (volume / "work" / KEYRING).read_bytes()
    assert run_dstj(*words) == 64
    assert f"dstj keys shred --directory {volume / 'work'} --yes" in capsys.readouterr().err
    assert (volume / "work" / KEYRING).read_bytes() == before
    assert run_dstj(*words, "--yes") == 0
    assert capsys.readouterr().out.startswith("lab/demo: the data key is destroyed")
    assert run_dstj("checkpoint", "list", "--directory", volume / "work", "--key-dir", volume / "old") == 77
    assert "was shredded" in capsys.readouterr().err


def test_shred_of_a_volume_without_a_keyring_is_refused(run_dstj, volume, capsys):
    (volume / "work" / KEYRING).unlink()
    assert run_dstj("keys", "shred", "--directory", volume / "work", "--yes") == 64
    assert "nothing of the job is sealed" in capsys.readouterr().err


def test_shred_of_a_job_in_the_clear_is_refused(run_dstj, place, capsys):
    store(job_home(), a_job() | {"status": {}})
    assert run_dstj("keys", "shred", "tiny", "--yes") == 64
    assert "nothing of the job is sealed" in capsys.readouterr().err


def keys_of(place):
    """Ids of the keys of secret s, by file."""
    return {file.name: read_kek(file).id for file in (place / ".dstj/secrets/s").iterdir()}


def shown_nowhere(text, *keys):
    return not any(form in text for key in keys for form in (key.material.hex(), repr(key.material)[2:-1]))


def test_rotate_makes_a_private_key_and_keeps_the_old_one_beside_it(run_dstj, sealed_job, place, capsys):
    old = read_kek(place / ".dstj/secrets/s/kek")
    assert run_dstj("keys", "rotate", "tiny") == 0
    new = read_kek(place / ".dstj/secrets/s/kek")
    assert keys_of(place) == {"kek": new.id, f"kek-{old.id}": old.id}
    assert {file.stat().st_mode & 0o777 for file in (place / ".dstj/secrets/s").iterdir()} == {0o600}
    (data_key,) = Keyring.open(sealed_job, "default/tiny", [new]).keys
    shown = capsys.readouterr().out
    assert f"key {new.id} in {place}/.dstj/secrets/s/kek wraps the data key" in shown
    assert f"key {old.id} is now in {place}/.dstj/secrets/s/kek-{old.id}" in shown
    assert shown_nowhere(shown, old, new, data_key)


def test_no_command_that_reads_a_key_leaves_a_core_file(run_dstj, sealed_job, monkeypatch):
    limits = []
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: limits.append(limit))
    assert run_dstj("keys", "rotate", "tiny") == 0
    assert limits == [(resource.RLIMIT_CORE, (1, 1))]


def test_rotate_works_while_the_job_runs(run_dstj, sealed_job, place):
    with job_home().locked():
        assert run_dstj("keys", "rotate", "tiny") == 0
    assert Keyring.open(sealed_job, "default/tiny", [read_kek(place / ".dstj/secrets/s/kek")])


def test_rotate_makes_no_key_for_a_keyring_that_does_not_open(run_dstj, sealed_job, place, capsys):
    (place / ".dstj/secrets/s/kek").unlink()
    generate_kek(place / ".dstj/secrets/s/kek")
    assert run_dstj("keys", "rotate", "tiny") == 77
    assert "wrong key" in capsys.readouterr().err
    assert list(keys_of(place)) == ["kek"]


def test_rotate_of_a_local_job_takes_no_key_directory(run_dstj, sealed_job, capsys):
    assert run_dstj("keys", "rotate", "tiny", "--new-key-dir", "x") == 64
    assert "without --key-dir, --new-key-dir and --key" in capsys.readouterr().err


@pytest.fixture
def volume(tmp_path_factory):
    """A copied volume with a checkpoint, and two directories with a key each."""
    place = tmp_path_factory.mktemp("copy")
    old, _ = generate_kek(place / "old/kek"), generate_kek(place / "new/kek")
    (place / "work").mkdir()
    CheckpointStore(place / "work/checkpoints", a_vault(place / "work", kek=old)).save(1, a_state(1), {})
    return place


def test_rotate_of_a_volume_takes_the_key_from_one_directory_to_the_other(run_dstj, volume, capsys):
    words = ("--directory", volume / "work", "--key-dir", volume / "old", "--new-key-dir", volume / "new")
    before = {path: path.stat().st_mtime_ns for path in volume.rglob("*.sealed")}
    assert run_dstj("keys", "rotate", *words) == 0
    assert f"lab/demo: key {read_kek(volume / 'new/kek').id} wraps the data key" in capsys.readouterr().out
    assert run_dstj("keys", "rotate", *words) == 0
    assert "wrapped it already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in volume.rglob("*.sealed")} == before
    assert run_dstj("checkpoint", "verify", "--directory", volume / "work", "--key-dir", volume / "new") == 0
    assert run_dstj("checkpoint", "verify", "--directory", volume / "work", "--key-dir", volume / "old") == 77


def test_rotate_of_a_volume_needs_both_keys(run_dstj, volume, capsys):
    assert run_dstj("keys", "rotate", "--directory", volume / "work", "--key-dir", volume / "old") == 64
    assert "--new-key-dir DIR with the new one" in capsys.readouterr().err


def test_rotate_asks_which_of_several_keys_is_the_new_one(run_dstj, volume, capsys):
    generate_kek(volume / "new/kek-2")
    words = ("--directory", volume / "work", "--key-dir", volume / "old", "--new-key-dir", volume / "new")
    assert run_dstj("keys", "rotate", *words) == 64
    assert "which key is the new one? kek, kek-2" in capsys.readouterr().err
    assert run_dstj("keys", "rotate", *words, "--key", "kek-2") == 0
    a_vault(volume / "work", kek=read_kek(volume / "new/kek-2"))


def test_rotate_of_no_keyring_says_so(run_dstj, volume, capsys):
    words = ("--directory", volume / "nowhere", "--key-dir", volume / "old", "--new-key-dir", volume / "new")
    assert run_dstj("keys", "rotate", *words) == 77
    assert "no keyring" in capsys.readouterr().err


def test_inspect_shows_which_key_wraps_what_and_never_a_key(run_dstj, sealed_job, place, capsys):
    run_dstj("keys", "rotate", "tiny")
    capsys.readouterr()
    assert run_dstj("keys", "inspect", "tiny") == 0
    shown = capsys.readouterr().out
    new, old = sorted((place / ".dstj/secrets/s").iterdir())
    (data_key,) = Keyring.open(sealed_job, "default/tiny", [read_kek(new)]).keys
    rows = [line.split() for line in shown.splitlines()]
    assert [row[:3] for row in rows if row[1:2] in (["kek"], [old.name])] == [
        [read_kek(new).id, "kek", "0600"],
        [read_kek(old).id, old.name, "0600"],
    ]
    assert f"keyring {sealed_job} of default/tiny, mode 0600" in shown
    assert [row[2:] for row in rows if row[0] == data_key.id] == [[read_kek(new).id, "kek", "seals", "new", "files"]]
    assert shown_nowhere(shown, read_kek(new), read_kek(old), data_key)


def test_inspect_shows_what_is_wrong_with_a_key(run_dstj, sealed_job, place, capsys):
    (place / ".dstj/secrets/s/kek").chmod(0o644)
    assert run_dstj("keys", "inspect", "tiny") == 0
    shown = capsys.readouterr().out
    assert "mode 0644: others than its owner can reach the key" in shown
    assert "not here" in shown


def test_inspect_shows_a_key_directory_or_a_volume_alone(run_dstj, volume, capsys):
    assert run_dstj("keys", "inspect", "--key-dir", volume / "old") == 0
    key, shown = read_kek(volume / "old/kek").id, capsys.readouterr().out
    assert key in shown
    assert "keyring" not in shown
    assert run_dstj("keys", "inspect", "--directory", volume / "work") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"keyring {volume / 'work' / KEYRING} of lab/demo")
    assert key in shown


def test_inspect_of_nothing_says_what_can_be_named(run_dstj, place, capsys):
    assert run_dstj("keys", "inspect") == 64
    assert "NAME, --directory DIR or --key-dir DIR" in capsys.readouterr().err


def test_a_key_in_escrow_opens_a_job_once_it_is_granted_and_no_longer_once_it_is_revoked(
    run_dstj, sealed_job, place, capsys
):
    own, escrow = read_kek(place / ".dstj/secrets/s/kek"), generate_kek(place / "escrow/kek")
    assert run_dstj("keys", "grant", "tiny", "--kek", place / "escrow/kek") == 0
    assert f"default/tiny: key {escrow.id} opens it\n" in capsys.readouterr().out
    assert Keyring.open(sealed_job, "default/tiny", [escrow])
    assert run_dstj("keys", "grant", "tiny", "--kek", place / "escrow/kek") == 0
    assert "opens it already" in capsys.readouterr().out
    assert run_dstj("keys", "inspect", "tiny") == 0
    shown = capsys.readouterr().out
    assert f"authentic: {own.id} opens it" in shown
    assert [line.split()[2:4] for line in shown.splitlines() if "seals new files" in line] == [
        [own.id, "kek"],
        [escrow.id, "not"],
    ]
    assert shown_nowhere(shown, own, escrow)
    assert run_dstj("keys", "revoke", "tiny", "--kek-id", escrow.id) == 0
    assert f"key {escrow.id} opens it no longer" in capsys.readouterr().out
    assert run_dstj("keys", "revoke", "tiny", "--kek-id", own.id) == 64
    assert "the last key that opens" in capsys.readouterr().err


def test_rotation_of_a_job_keeps_the_key_in_escrow(run_dstj, sealed_job, place):
    escrow = generate_kek(place / "escrow/kek")
    run_dstj("keys", "grant", "tiny", "--kek", place / "escrow/kek")
    assert run_dstj("keys", "rotate", "tiny") == 0
    assert Keyring.open(sealed_job, "default/tiny", [escrow])
    assert Keyring.open(sealed_job, "default/tiny", [read_kek(place / ".dstj/secrets/s/kek")])


def test_a_key_in_escrow_alone_reads_a_volume_and_grants_to_another(run_dstj, volume):
    words = ("--directory", volume / "work")
    assert run_dstj("keys", "grant", *words, "--key-dir", volume / "old", "--kek", volume / "new/kek") == 0
    assert run_dstj("checkpoint", "verify", *words, "--key-dir", volume / "new") == 0
    generate_kek(volume / "third/kek")
    assert run_dstj("keys", "grant", *words, "--key-dir", volume / "new", "--kek", volume / "third/kek") == 0
    assert run_dstj("keys", "revoke", *words, "--key-dir", volume / "third", "--kek-id", "0" * 16) == 64
    assert run_dstj("checkpoint", "verify", *words, "--key-dir", volume / "third") == 0


def test_a_grant_to_a_volume_needs_a_key_that_opens_it(run_dstj, volume, capsys):
    words = ("--directory", volume / "work", "--kek", volume / "new/kek")
    assert run_dstj("keys", "grant", *words) == 64
    assert "--key-dir DIR with such a key" in capsys.readouterr().err
    assert run_dstj("keys", "grant", *words, "--key-dir", volume / "new") == 77
    assert "wrong key" in capsys.readouterr().err


def test_no_weak_key_is_granted(run_dstj, sealed_job, place, capsys):
    a_key_file(place / "escrow/kek", b"correct horse battery staple 42!")
    assert run_dstj("keys", "grant", "tiny", "--kek", place / "escrow/kek") == 77
    assert "is text, and a key-encryption key is 32 random bytes" in capsys.readouterr().err


def test_rotate_leads_a_job_away_from_a_weak_key(run_dstj, place, capsys):
    weak = a_key_file(place / ".dstj/secrets/s/kek", bytes(32))
    home = job_home()
    store(home, a_job(checkpoint={"encryption": {"keyRef": {"secretName": "s"}}}) | {"status": {}})
    path = a_keyring_1(home.paths.work, job="default/tiny", kek=read_kek(weak, may_be_weak=True))
    assert run_dstj("keys", "inspect", "tiny") == 0
    assert "has 1 different bytes" in capsys.readouterr().out
    assert run_dstj("keys", "rotate", "tiny") == 0
    assert Keyring.open(path, "default/tiny", [read_kek(weak)])


def test_inspect_says_that_a_keyring_was_changed_or_is_of_a_format_that_cannot_tell(run_dstj, volume, capsys):
    words = ("keys", "inspect", "--directory", volume / "work", "--key-dir", volume / "old")
    path = volume / "work" / KEYRING
    path.write_text(path.read_text().replace('"created": "20', '"created": "19'))
    assert run_dstj(*words) == 0
    assert "it does not authenticate: it was changed" in capsys.readouterr().out
    a_keyring_1(volume / "work", kek=read_kek(volume / "old/kek"))
    assert run_dstj(*words) == 0
    assert "not authenticated, as in all keyrings of its format" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[" * 100_000, '{"format": "\\u001b[31m\\n"}', "[]"])
@pytest.mark.parametrize("command", ["inspect", "rotate", "grant", "revoke", "shred"])
def test_what_is_no_keyring_ends_every_command_in_a_line(run_dstj, sealed_job, capsys, command, content):
    sealed_job.write_text(content)
    generate_kek(sealed_job.parent / "escrow/kek")
    options = {
        "grant": ["--kek", sealed_job.parent / "escrow/kek"],
        "revoke": ["--kek-id", "0" * 16],
        "shred": ["--yes"],
    }
    assert run_dstj("keys", command, "tiny", *options.get(command, [])) == 77
    said = capsys.readouterr().err
    assert "is not a dstj-keyring/2 keyring" in said
    assert "\x1b" not in said
    assert len(said) < 1000


def test_shred_names_what_it_left_alone(run_dstj, sealed_job, capsys):
    (sealed_job.parent / f"{KEYRING}.partial-\x1b[31m").mkdir()
    assert run_dstj("keys", "shred", "tiny", "--yes") == 0
    shown = capsys.readouterr().out
    assert r"'keyring.json.partial-\x1b[31m' beside it is no keyring of the job, and was left alone" in shown


@pytest.mark.parametrize("options", [["--secret", "s", "--key", "kek.partial-x"], ["--secret", "s.partial-x"]])
def test_generate_makes_no_name_of_a_file_that_is_being_written(run_dstj, place, capsys, options):
    assert run_dstj("keys", "generate", *options) == 64
    assert "names with '.partial-'" in capsys.readouterr().err
    assert not (place / ".dstj").exists()
