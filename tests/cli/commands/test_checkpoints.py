"""`dstj checkpoint` and `dstj result`, on checkpoints that the trainer's own store wrote."""

import re

import pytest

from deepseek_trainer.storage.vault import Purpose
from dstj.local.store import store
from support.builders.checkpoints import a_key, a_run
from support.builders.cli import a_job, job_home
from support.builders.vault import OTHER_KEK, a_vault
from support.faults.crashes import bad_sector, damage


@pytest.fixture(params=[True, False], ids=["sealed", "clear"])
def work(request, place):
    a_key(place)
    return a_run(sealed=request.param)


def test_list_shows_a_line_for_each_checkpoint(run_dstj, work, capsys):
    assert run_dstj("checkpoint", "list", "tiny") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows if row and row[-1] == "ok"] == ["10", "20"]


def test_list_shows_the_key_of_a_sealed_checkpoint_and_the_reason_of_a_refused_one(run_dstj, place, capsys):
    a_key(place)
    work = a_run(sealed=True)
    damage(work / "checkpoints/step-00000020/manifest.json.sealed")
    assert run_dstj("checkpoint", "list", "tiny") == 0
    _, good, bad = capsys.readouterr().out.splitlines()
    assert re.search(r" [0-9a-f]{16} ", good)
    assert re.search(r"^20 .*step-00000020", bad)


def test_verify_reads_every_byte(run_dstj, work, capsys):
    assert run_dstj("checkpoint", "verify", "tiny") == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["step 10: ok", "step 20: ok"]


def test_verify_reports_the_damaged_one_and_goes_on_with_the_others(run_dstj, work, capsys):
    damage(next((work / "checkpoints/step-00000010").glob("rank-00000.safetensors*")))
    assert run_dstj("checkpoint", "verify", "tiny") == 77
    printed = capsys.readouterr()
    assert printed.err.startswith("dstj: error: step 10: ")
    assert printed.out.startswith("step 20: ok")


def test_verify_reports_a_bad_sector_as_such_and_goes_on_with_the_others(run_dstj, work, monkeypatch, capsys):
    bad_sector(monkeypatch, "step-00000010/rank-")
    assert run_dstj("checkpoint", "verify", "tiny") == 77
    printed = capsys.readouterr()
    assert "cannot be read: Input/output error" in printed.err.splitlines()[0]
    assert "kernel log" in printed.err.splitlines()[1]
    assert printed.out.startswith("step 20: ok")


def test_decrypt_writes_the_newest_checkpoint_in_the_clear(run_dstj, work, place, capsys):
    assert run_dstj("checkpoint", "decrypt", "tiny", "--to", place / "clear") == 0
    assert (place / "clear/rank-00000.safetensors").stat().st_mode & 0o777 == 0o600
    assert (place / "clear/manifest.json").exists()
    assert capsys.readouterr().out.startswith(f"step 20 is in {place}/clear")


def test_decrypt_takes_the_step_that_is_asked_for(run_dstj, work, place, capsys):
    assert run_dstj("checkpoint", "decrypt", "tiny", "--to", place / "clear", "--step", 10) == 0
    assert capsys.readouterr().out.startswith("step 10 is in ")


def test_decrypt_of_a_step_that_is_not_there_names_those_that_are(run_dstj, work, place, capsys):
    assert run_dstj("checkpoint", "decrypt", "tiny", "--to", place / "clear", "--step", 15) == 65
    assert "steps that can be: 10, 20" in capsys.readouterr().err
    assert not (place / "clear").exists()


def test_decrypt_overwrites_nothing(run_dstj, work, place, capsys):
    (place / "clear").mkdir()
    assert run_dstj("checkpoint", "decrypt", "tiny", "--to", place / "clear") == 64
    assert "nothing is overwritten" in capsys.readouterr().err


def test_wrong_key_is_refused_with_code_77(run_dstj, place, capsys):
    a_run(sealed=True)
    a_key(place, OTHER_KEK)
    assert run_dstj("checkpoint", "list", "tiny") == 77
    assert f"given: {OTHER_KEK.id}" in capsys.readouterr().err


def test_key_that_others_can_read_is_refused(run_dstj, place, capsys):
    a_run(sealed=True)
    (a_key(place) / "kek").chmod(0o644)
    assert run_dstj("checkpoint", "list", "tiny") == 77
    assert "chmod 600" in capsys.readouterr().err


def test_copy_of_a_volume_opens_with_its_key_directory(run_dstj, place, tmp_path_factory, capsys):
    copy = tmp_path_factory.mktemp("copy")
    a_run(sealed=True).rename(copy / "work")
    keys = a_key(place)
    assert run_dstj("checkpoint", "verify", "--directory", copy / "work", "--key-dir", keys) == 0
    assert run_dstj("checkpoint", "verify", "--directory", copy / "work") == 64
    assert "--key-dir DIR" in capsys.readouterr().err


def test_job_without_checkpoints_says_when_they_come(run_dstj, place, capsys):
    store(job_home(), a_job() | {"status": {}})
    assert run_dstj("checkpoint", "list", "tiny") == 65
    assert "no checkpoints in" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("checkpoint", "list"), ("checkpoint", "list", "tiny", "--directory", "x")])
def test_either_a_job_or_a_directory_is_named(run_dstj, place, words):
    assert run_dstj(*words) == 2


@pytest.mark.parametrize("sealed", [True, False])
def test_result_is_written_in_the_clear(run_dstj, place, sealed):
    a_key(place)
    work = a_run(sealed=sealed)
    exported = work / "export/tiny"
    (exported / "adapter").mkdir(parents=True)
    vault = a_vault(work, purpose=Purpose.EXPORT, sealed=sealed)
    vault.write(exported / "model.safetensors", b"weights")
    vault.write(exported / "adapter/config.json", b"{}")
    assert run_dstj("result", "tiny", "--to", place / "out") == 0
    assert (place / "out/model.safetensors").read_bytes() == b"weights"
    assert (place / "out/adapter/config.json").read_bytes() == b"{}"


def test_result_of_a_job_that_has_none_is_named(run_dstj, work, place, capsys):
    assert run_dstj("result", "tiny", "--to", place / "out") == 65
    assert "the job has not succeeded yet" in capsys.readouterr().err
    assert not (place / "out").exists()
