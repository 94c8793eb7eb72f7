"""Which directory stands for a claim, and which file for a key."""

import pytest

from deepseek_trainer.contract.errors import ConfigError
from dstj.jobfile import load_job
from dstj.local.claims import sources
from dstj.local.home import Home
from support.builders.cli import job_file

KEY = {"encryption": {"keyRef": {"secretName": "s"}}}


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "state")


def test_claim_is_the_directory_beside_the_job_file(tmp_path, home):
    assert sources(load_job(job_file(tmp_path)), home).claims["corpus"] == tmp_path / "corpus"


def test_volume_option_wins_over_the_directory_beside_the_file(tmp_path, home):
    (tmp_path / "other").mkdir()
    found = sources(load_job(job_file(tmp_path)), home, [f"corpus={tmp_path}/other"])
    assert found.claims["corpus"] == tmp_path / "other"


def test_claim_is_found_below_the_state_directory(tmp_path, home):
    job = load_job(job_file(tmp_path))
    (tmp_path / "corpus").rmdir()
    home.volume("corpus").mkdir(parents=True)
    assert sources(job, home).claims["corpus"] == home.volume("corpus")


def test_claim_made_for_the_job_is_its_work_directory(tmp_path, home):
    assert sources(load_job(job_file(tmp_path)), home).claims["dstj-tiny"] == home.directory / "tiny/work"


def test_existing_work_claim_is_looked_for_like_the_others(tmp_path, home):
    job = load_job(job_file(tmp_path, checkpoint__volume__claimName="work-claim"))
    with pytest.raises(ConfigError, match="no directory for the claim work-claim"):
        sources(job, home)
    (tmp_path / "work-claim").mkdir()
    assert sources(job, home).claims["work-claim"] == tmp_path / "work-claim"


def test_claims_of_all_sources_are_looked_for(tmp_path, home):
    mix = [{"name": name, "claimName": f"{name}-texts"} for name in ("ours", "theirs")]
    job = load_job(job_file(tmp_path, data={"sources": mix}))
    (tmp_path / "ours-texts").mkdir()
    with pytest.raises(ConfigError, match="no directory for the claim theirs-texts"):
        sources(job, home)


def test_missing_claim_names_all_three_places(tmp_path, home):
    job = load_job(job_file(tmp_path))
    (tmp_path / "corpus").rmdir()
    with pytest.raises(ConfigError) as caught:
        sources(job, home)
    assert f"looked at {tmp_path}/corpus and {home.volume('corpus')}, and no --volume names it" in caught.value.problem
    assert caught.value.hint == f"dstj run {job.path} --volume corpus=DIR"


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("corpus", "must be CLAIM=DIR"),
        ("=x", "must be CLAIM=DIR"),
        ("corpus=", "must be CLAIM=DIR"),
        ("corpus=nowhere", "nowhere is not a directory"),
        ("corpsu=.", "the job has no such claim"),
    ],
)
def test_wrong_volume_option_is_refused(tmp_path, home, option, problem):
    with pytest.raises(ConfigError, match=problem):
        sources(load_job(job_file(tmp_path)), home, [option])


def test_unknown_claim_gets_a_did_you_mean(tmp_path, home):
    with pytest.raises(ConfigError) as caught:
        sources(load_job(job_file(tmp_path)), home, ["corpsu=."])
    assert caught.value.hint == "did you mean corpus?"


def test_missing_key_says_how_to_make_one(tmp_path, home):
    job = load_job(job_file(tmp_path, checkpoint=KEY))
    with pytest.raises(ConfigError) as caught:
        sources(job, home)
    assert caught.value.hint == "dstj keys generate --secret s"


def test_key_is_found_in_the_state_directory(tmp_path, home):
    home.secret("s").mkdir(parents=True)
    (home.secret("s") / "kek").write_bytes(bytes(32))
    assert sources(load_job(job_file(tmp_path, checkpoint=KEY)), home).secrets == {"s": home.secret("s")}
