"""`dstj checkpoint prune`: what may go goes, and what a job needs stays."""

import pytest

from deepseek_trainer.contract.errors import TryAgainError
from deepseek_trainer.contract.retention import Retention
from dstj.local.store import store
from support.builders.checkpoints import KEY, a_key, a_run
from support.builders.cli import a_job, job_home
from support.builders.vault import a_state, a_store, weights_of
from support.faults.crashes import damage

STEPS = (10, 20, 30, 40, 50)


@pytest.fixture(params=[True, False], ids=["sealed", "clear"])
def work(request, place):
    a_key(place)
    return a_run(sealed=request.param, steps=STEPS)


def steps_of(work):
    return sorted(int(path.name[5:]) for path in (work / "checkpoints").glob("step-*"))


def test_prune_keeps_the_newest_and_says_what_went(run_dstj, work, capsys):
    sizes = [
        sum(file.stat().st_size for file in path.iterdir()) for path in (work / "checkpoints").glob("step-*[123]0")
    ]
    assert run_dstj("checkpoint", "prune", "tiny", "--keep-last", 2) == 0
    assert steps_of(work) == [40, 50]
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines[:-1]] == [f"step {step}: deleted" for step in (10, 20, 30)]
    assert lines[-1] == f"3 deleted, {sum(sizes) / (1 << 20):.1f} MiB freed; kept: 40, 50"


def test_prune_takes_the_jobs_own_retention(run_dstj, place):
    work = a_run(sealed=False, steps=STEPS)
    store(job_home(), a_job(checkpoint={"retention": {"keepLast": 4}}) | {"status": {}})
    assert run_dstj("checkpoint", "prune", "tiny") == 0
    assert steps_of(work) == [20, 30, 40, 50]


def test_prune_of_a_copy_keeps_three_by_default(run_dstj, place):
    work = a_run(sealed=False, steps=STEPS)
    assert run_dstj("checkpoint", "prune", "--directory", work) == 0
    assert steps_of(work) == [30, 40, 50]


@pytest.mark.parametrize(
    ("options", "kept"), [((), [20, 40, 50]), (("--keep-every", 30), [30, 50]), (("--keep-every", 0), [50])]
)
def test_prune_keeps_every_nth_as_the_job_says_or_as_the_option_says(run_dstj, place, options, kept):
    work = a_run(sealed=False, steps=STEPS)
    store(job_home(), a_job(checkpoint={"retention": {"keepLast": 1, "keepEvery": 20}}) | {"status": {}})
    assert run_dstj("checkpoint", "prune", "tiny", *options) == 0
    assert steps_of(work) == kept


def test_prune_keeps_the_best(run_dstj, place):
    a_key(place)
    work = a_run(sealed=True, steps=STEPS)
    a_store(work).prune(Retention(keep_last=5), 20)
    assert run_dstj("checkpoint", "prune", "tiny", "--keep-last", 1) == 0
    assert steps_of(work) == [20, 50]


def test_prune_keeps_the_newest_that_authenticates(run_dstj, work):
    for step in (40, 50):
        damage(next((work / f"checkpoints/step-000000{step}").glob("rank-00000.safetensors*")))
    assert run_dstj("checkpoint", "prune", "tiny", "--keep-last", 1) == 0
    assert steps_of(work) == [30, 50]


def test_prune_deletes_nothing_where_none_authenticates(run_dstj, work, capsys):
    for step in STEPS:
        damage(next((work / f"checkpoints/step-000000{step}").glob("rank-00000.safetensors*")))
    assert run_dstj("checkpoint", "prune", "tiny", "--keep-last", 1) == 77
    assert "authenticates" in capsys.readouterr().err
    assert steps_of(work) == list(STEPS)


def test_prune_of_little_deletes_nothing(run_dstj, work, capsys):
    assert run_dstj("checkpoint", "prune", "tiny", "--keep-last", 9) == 0
    assert capsys.readouterr().out == "0 deleted, 0.0 MiB freed; kept: 10, 20, 30, 40, 50\n"


def test_prune_waits_for_no_running_job(run_dstj, work, capsys):
    with job_home().locked():
        assert run_dstj("checkpoint", "prune", "tiny", "--keep-last", 1) == 75
    assert "runs this job already" in capsys.readouterr().err
    assert steps_of(work) == list(STEPS)


def test_a_run_that_still_writes_to_a_pruned_volume_is_shut_out(run_dstj, place):
    keys = a_key(place)
    work = a_run(sealed=True, steps=(10, 20))
    running = a_store(work)
    assert run_dstj("checkpoint", "prune", "--directory", work, "--key-dir", keys, "--keep-last", 1) == 0
    with pytest.raises(TryAgainError, match="another attempt has taken"):
        running.save(30, a_state(30), {})
    again = a_store(work)
    info = again.latest()
    assert info is not None
    assert weights_of(again.load(info)[0]) == 20


@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_prune_keeps_at_least_one(run_dstj, place, number, capsys):
    assert run_dstj("checkpoint", "prune", "tiny", "--keep-last", number) == 2
    assert "dstj: error:" in capsys.readouterr().err


def test_prune_keeps_no_multiples_of_less_than_nothing(run_dstj, place, capsys):
    assert run_dstj("checkpoint", "prune", "tiny", "--keep-every", -1) == 2
    assert "is not a whole number of at least 0" in capsys.readouterr().err


def test_prune_of_more_than_a_job_may_keep_is_refused_in_one_line(run_dstj, work, capsys):
    assert run_dstj("checkpoint", "prune", "tiny", "--keep-last", 1001) == 64
    assert "--keep-last 1001" in capsys.readouterr().err


def test_prune_without_checkpoints_writes_nothing(run_dstj, place, capsys):
    store(job_home(), a_job(checkpoint=KEY) | {"status": {}})
    (job_home().paths.work / "checkpoints").mkdir(parents=True)
    a_key(place)
    assert run_dstj("checkpoint", "prune", "--directory", job_home().paths.work) == 65
    assert "no checkpoints in" in capsys.readouterr().err
    assert not list((job_home().paths.work / "checkpoints").iterdir())
