"""`dstj doctor --sealed`: what is in the clear, why, and what ought not to be."""

import os
import random

import pytest

from deepseek_trainer.storage.vault import Purpose
from dstj.local.store import store
from support.builders.checkpoints import KEY, a_key, a_run
from support.builders.cli import a_job, job_home
from support.builders.vault import KEK, OTHER_KEK, a_vault

CANARY = "the canary of room 4711"


@pytest.fixture
def work(place):
    """The volume of a job that has run, with all that a run leaves beside it."""
    keys = a_key(place)
    work = a_run(sealed=True)
    (work / "export/tiny").mkdir(parents=True)
    a_vault(work, purpose=Purpose.EXPORT).write(work / "export/tiny/model.safetensors", CANARY.encode() * 500)
    (work / "logs").mkdir()
    (work / "logs/events.jsonl").write_text('{"event": "step", "time": 1.0}\n')
    home = job_home().directory
    for name in ("logs/tiny-a1-0/trainer.log", "logs/tiny-a1-0/trainer.termination", "etc/dstj/config.json"):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text('{"stage": "done"}')
    (home / "volumes").mkdir()
    (home / "volumes/corpus").symlink_to(place / "corpus")
    (home / "run/dstj").mkdir(parents=True)
    (home / "run/dstj/keys").symlink_to(keys)
    (place / "corpus").mkdir()
    (place / "corpus/train.jsonl").write_text(CANARY)  # the job's input, which is not its own
    (place / "words").write_text(f"{CANARY}\n")
    return work


@pytest.fixture
def look(run_dstj, place, capsys):
    """Exit code, output, and the lines of the table of leaks."""

    def run(*arguments):
        code = run_dstj("doctor", *arguments, "--words", place / "words")
        printed = capsys.readouterr()
        assert CANARY not in printed.out + printed.err
        _, _, leaks = printed.out.partition("\nLEAK ")
        return code, printed.out, [line for line in leaks.splitlines()[1:] if str(place) in line]

    return run


def test_a_sealed_job_has_no_leak_and_is_told_what_is_in_the_clear(work, look):
    code, out, leaks = look("--sealed", "tiny")
    assert (code, leaks) == (0, [])
    assert "ok    key        6 of 6 sealed files authenticate" in out
    assert out.endswith("\nno leak was found\n")
    (keyring,) = [line for line in out.splitlines() if "keyring.json " in line]
    assert "wrapped by a key that is not on the volume" in keyring
    for name in ("status.yaml", "logs/*/*.log", "logs/events.jsonl", "volumes/*"):
        assert f"/{name} " in out


@pytest.mark.parametrize(
    "name",
    [
        "work/export/tiny/note.txt",
        "logs/tiny-a1-0/trainer.log",
        "tmp/tiny-a1-0/cache",
        "logs/tiny-a1-0/trainer.termination",
    ],
)
def test_a_planted_word_is_found_wherever_the_job_writes(work, look, name):
    path = job_home().directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"INFO: {CANARY}\n")
    code, _, leaks = look("--sealed", "tiny")
    assert code == 77
    assert [line.split()[:2] for line in leaks if "word 1" in line] == [[str(path), "6"]]


def test_words_in_the_status_are_found(work, look):
    store(job_home(), a_job(checkpoint=KEY) | {"status": {"message": f"oops: {CANARY}"}})
    assert look("--sealed", "tiny")[0] == 77


@pytest.mark.parametrize("key", [KEK.material, KEK.material.hex().encode()])
def test_the_key_itself_in_a_log_is_found(work, look, key):
    (job_home().logs / "tiny-a1-0/trainer.log").write_bytes(b"INFO: " + key)
    code, _, leaks = look("--sealed", "tiny")
    assert code == 77
    assert [line for line in leaks if f"the key-encryption key {KEK.id}" in line]


def test_a_copy_of_a_volume_is_looked_at_with_its_key_and_with_logs_beside_it(work, look, place):
    (place / "pods").mkdir()
    (place / "pods/0.log").write_text("INFO: all is well\n")
    arguments = ("--sealed", "--directory", work, "--key-dir", place / ".dstj/secrets/s", "--also", place / "pods")
    code, out, _ = look(*arguments)
    assert (code, "6 of 6 sealed files authenticate" in out) == (0, True)
    (place / "pods/0.log").write_text(f"INFO: {CANARY}\n")
    code, _, leaks = look(*arguments)
    assert (code, len(leaks)) == (77, 1)


def test_without_a_key_sealed_files_are_held_against_chance(work, look):
    code, out, _ = look("--sealed", "--directory", work)
    assert (code, "no sealed file was authenticated" in out) == (0, True)
    path = work / "export/tiny/model.safetensors.sealed"
    path.write_bytes(path.read_bytes()[:3000] + random.Random(7).randbytes(9) + CANARY.encode())
    code, _, leaks = look("--sealed", "--directory", work)
    assert code == 77
    assert [line.split()[1] for line in leaks if "word 1" in line] == ["3009"]


def test_a_wrong_key_is_said_and_the_look_goes_on(work, look, place):
    a_key(place, OTHER_KEK)
    (work / "planted").write_text(CANARY)
    code, out, leaks = look("--sealed", "tiny")
    assert (code, len(leaks)) == (77, 2)
    assert "fail  key        wrong key" in out


def test_a_fifo_in_place_of_the_keyring_is_named_and_never_opened(work, look):
    (work / "keyring.json").unlink()
    os.mkfifo(work / "keyring.json")
    code, _, leaks = look("--sealed", "tiny")
    assert code == 77
    assert [line for line in leaks if "keyring.json " in line and "a FIFO" in line]


def test_a_job_that_leaves_its_result_in_the_clear_on_purpose_says_so(work, look):
    store(job_home(), a_job(checkpoint=KEY, export__sealed=False) | {"status": {}})
    (work / "export/tiny/model.safetensors").write_bytes(b"weights")
    code, out, _ = look("--sealed", "tiny")
    assert (code, "the job says export.sealed: false" in out) == (0, True)


def test_a_job_that_seals_nothing_is_refused(run_dstj, place, capsys):
    a_run(sealed=False)
    assert run_dstj("doctor", "--sealed", "tiny") == 64
    assert "seals nothing" in capsys.readouterr().err


def test_a_look_without_words_says_that_none_were_looked_for(work, run_dstj, capsys):
    assert run_dstj("doctor", "--sealed", "tiny") == 0
    assert "warn  words" in capsys.readouterr().out


def test_a_job_that_runs_is_not_looked_at(work, run_dstj, capsys):
    with job_home().locked():
        assert run_dstj("doctor", "--sealed", "tiny") == 75
    assert "runs this job already" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--sealed",), ("--sealed", "tiny", "--directory", ".")])
def test_either_a_job_or_a_directory_is_named(run_dstj, place, words):
    assert run_dstj("doctor", *words) == 2


@pytest.mark.parametrize("words", [("--directory", "gone"), ("--directory", ".", "--also", "gone")])
def test_a_place_that_is_not_there_is_named(run_dstj, place, capsys, words):
    assert run_dstj("doctor", "--sealed", *words) == 64
    assert "gone: no such file or directory" in capsys.readouterr().err
