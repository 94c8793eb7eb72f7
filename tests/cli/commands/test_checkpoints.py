"""`dstj checkpoint` and `dstj result`, on checkpoints that the trainer's own store wrote."""

import re
import shutil

import pytest

from deepseek_trainer.checkpoints.store import CheckpointStore
from dstj.local.store import store
from support.builders.checkpoints import a_key, a_run
from support.builders.cli import a_job, job_home
from support.builders.result import FILES, a_result
from support.builders.vault import OTHER_KEK, a_state, a_store, a_vault
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


@pytest.mark.parametrize(("sealed", "clear_files"), [(True, False), (True, True), (False, False)])
def test_result_is_written_in_the_clear(run_dstj, place, capsys, sealed, clear_files):
    a_key(place)
    a_result(a_run(sealed=sealed), sealed=sealed, clear_files=clear_files)
    assert run_dstj("result", "tiny", "--to", place / "out") == 0
    assert {name: (place / "out" / name).read_bytes() for name in FILES} == FILES
    assert "of step 20, exported 2026-11-21T00:00:00Z, is in" in capsys.readouterr().out


def test_result_of_a_job_that_has_none_is_named(run_dstj, work, place, capsys):
    assert run_dstj("result", "tiny", "--to", place / "out") == 65
    assert "the job has not succeeded yet" in capsys.readouterr().err
    assert not (place / "out").exists()


@pytest.mark.parametrize("with_manifest", [True, False])
def test_files_in_the_clear_are_never_the_result_of_a_sealed_job(run_dstj, place, capsys, with_manifest):
    """The key and the keyring say that it is sealed, whatever lies on the volume."""
    keys, work = a_key(place), a_run(sealed=True)
    directory = a_result(work, sealed=False)
    if not with_manifest:
        (directory / "manifest.json").unlink()
    copy = ("result", "--directory", work, "--to", place / "out")
    for words in (("result", "tiny", "--to", place / "out"), (*copy, "--key-dir", keys)):
        for more in ((), ("--without-manifest",)):
            assert run_dstj(*words, *more) == 77
    assert run_dstj(*copy) == 64
    assert "give --key-dir DIR" in capsys.readouterr().err
    (work / "keyring.json").unlink()
    (work / "keyring.json").symlink_to("nowhere")
    assert run_dstj(*copy) == 64
    assert not (place / "out").exists()


@pytest.mark.parametrize("name", ["export", "export/demo", "export/demo/adapter", "export/demo/README.md"])
def test_result_that_lies_elsewhere_is_not_followed(run_dstj, place, capsys, name):
    work = a_run(sealed=False)
    a_result(work, sealed=False)
    (work / name).rename(place / "elsewhere")
    (work / name).symlink_to(place / "elsewhere")
    assert run_dstj("result", "tiny", "--to", place / "out") == 77
    assert "is a link" in capsys.readouterr().err
    assert not (place / "out").exists()


@pytest.mark.parametrize("sealed", [True, False])
def test_older_result_in_the_place_of_the_last_is_refused(run_dstj, place, capsys, sealed):
    a_key(place)
    work = a_run(sealed=sealed, steps=(10,))
    checkpoints = a_store(work, sealed=sealed)
    results = []
    for step in (20, 30):
        checkpoints.save(step, a_state(step), {})
        directory = a_result(work, sealed=sealed, commit=checkpoints.newest_digest(), step=step)
        assert run_dstj("result", "tiny", "--to", place / f"of a crash after export {step}") == 0
        checkpoints.mark_exported()
        results.append(directory.rename(place / f"of step {step}"))
    checkpoints.save(40, a_state(40), {})
    results[1].rename(directory)
    assert run_dstj("result", "tiny", "--to", place / "last") == 0, "also while training goes on"
    directory.rename(results[1])
    results[0].rename(directory)
    capsys.readouterr()
    assert run_dstj("result", "tiny", "--to", place / "older") == 77
    assert "is not the last result of the job, of step 20" in capsys.readouterr().err


def test_result_of_an_earlier_version_needs_a_word(run_dstj, place, capsys):
    a_key(place)
    directory = a_result(a_run(sealed=True))
    (directory / "manifest.json.sealed").unlink()
    assert run_dstj("result", "tiny", "--to", place / "out") == 77
    assert "--without-manifest" in capsys.readouterr().err
    assert run_dstj("result", "tiny", "--to", place / "out", "--without-manifest") == 0
    assert {name: (place / "out" / name).read_bytes() for name in FILES} == FILES


def test_volume_of_another_job_under_the_same_key_is_refused(run_dstj, place, capsys):
    a_key(place)
    work = a_run(sealed=True)
    shutil.rmtree(work)
    CheckpointStore(work / "checkpoints", a_vault(work, job="lab/other")).save(10, a_state(10), {})
    a_result(work, job="lab/other")
    for words in (("result", "tiny", "--to", place / "out"), ("checkpoint", "list", "tiny")):
        assert run_dstj(*words) == 77
        assert "belongs to job 'lab/other', not to lab/demo" in capsys.readouterr().err
