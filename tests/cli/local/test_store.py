"""status.yaml: what an API server would keep, number and refuse."""

import io

import pytest
import yaml

from deepseek_operator.jobs.spec import IMMUTABLE
from deepseek_trainer.contract.errors import ConfigError, IntegrityError
from dstj.jobfile import load_job
from dstj.local.home import Home
from dstj.local.store import admitted, lengthened, store, stored, write_yaml
from support.builders.cli import a_job, job_file

OTHER = {
    "trainer": {"numNodes": 2},
    "model": {"architecture": {"hiddenSize": 16}},
    "data": {"sequenceLength": 128},
    "method": {"type": "Full", "lora": None},
    "optimization": {"seed": 5},
    "checkpoint": {"resumeFrom": "None"},
    "network": {"isolation": "Unmanaged"},
    "evaluation": {"maxRows": 5},
    "export": {"sealed": False},
}


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "state").job("tiny")


def changed(tmp_path, field, values):
    path = job_file(tmp_path)
    manifest = yaml.safe_load(path.read_text())
    section = manifest["spec"].setdefault(field, {})
    for key, value in values.items():
        section[key] = section.get(key, {}) | value if isinstance(value, dict) else value
    path.write_text(yaml.safe_dump(manifest))
    return load_job(path)


def test_new_job_gets_a_uid_and_generation_1(tmp_path):
    made = admitted(load_job(job_file(tmp_path)), None)
    assert (made["metadata"]["generation"], made["metadata"]["namespace"], made["status"]) == (1, "default", {})
    assert made["metadata"]["uid"] != admitted(load_job(job_file(tmp_path)), None)["metadata"]["uid"]


def test_same_job_keeps_uid_generation_and_status(tmp_path):
    job = load_job(job_file(tmp_path))
    old = admitted(job, None) | {"status": {"phase": "Running"}}
    assert admitted(job, old) == old


@pytest.mark.parametrize(
    "change", [{"suspend": True}, {"runPolicy__maxRestarts": 9}, {"scheduling__priorityClassName": "p"}]
)
def test_field_that_may_change_raises_the_generation(tmp_path, change):
    old = admitted(load_job(job_file(tmp_path)), None)
    new = admitted(load_job(job_file(tmp_path, **change)), old)
    assert (new["metadata"]["generation"], new["metadata"]["uid"]) == (2, old["metadata"]["uid"])


@pytest.mark.parametrize("field", [field for field in IMMUTABLE if field not in ("method",)])
def test_immutable_field_is_refused_by_name(tmp_path, field):
    old = admitted(load_job(job_file(tmp_path)), None)
    with pytest.raises(ConfigError, match=f"spec.{field} changed since tiny was first run") as caught:
        admitted(changed(tmp_path, field, OTHER[field]), old)
    assert "--recreate" in caught.value.hint


def lasting(tmp_path, **lengths):
    path = job_file(tmp_path)
    manifest = yaml.safe_load(path.read_text())
    lasts = {"maxSteps": None, "epochs": None, "maxMinutes": None} | lengths
    optimization = manifest["spec"].setdefault("optimization", {}) | lasts
    manifest["spec"]["optimization"] = {name: value for name, value in optimization.items() if value is not None}
    path.write_text(yaml.safe_dump(manifest))
    return load_job(path)


@pytest.mark.parametrize(
    ("before", "now", "words"),
    [
        ({"maxSteps": 3}, {"maxSteps": 6}, "optimization.maxSteps: 6 instead of 3"),
        ({"epochs": 1}, {"epochs": 1.5}, "optimization.epochs: 1.5 instead of 1"),
        ({}, {"epochs": 4}, "optimization.epochs: 4 instead of 3"),
        ({"maxMinutes": 1}, {"maxMinutes": 2}, "optimization.maxMinutes: 2 instead of 1"),
        ({"maxSteps": 3, "maxMinutes": 1}, {"maxSteps": 3, "maxMinutes": 2}, "optimization.maxMinutes: 2 instead of 1"),
    ],
)
def test_job_that_only_goes_on_for_longer_is_a_new_one(tmp_path, before, now, words):
    old = admitted(lasting(tmp_path, **before), None) | {"status": {"phase": "Succeeded"}}
    longer = lasting(tmp_path, **now)
    new = admitted(longer, old)
    assert lengthened(longer, old) == words
    assert (new["metadata"]["uid"] != old["metadata"]["uid"], new["status"]) == (True, {})


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"maxSteps": 6}, {"maxSteps": 3}),
        ({"epochs": 4}, {}),
        ({"maxSteps": 3}, {"epochs": 9}),
        ({"maxSteps": 3, "maxMinutes": 2}, {"maxSteps": 6, "maxMinutes": 1}),
    ],
)
def test_job_that_is_shorter_or_measured_otherwise_is_refused(tmp_path, before, now):
    old = admitted(lasting(tmp_path, **before), None)
    with pytest.raises(ConfigError, match=r"spec.optimization changed since tiny was first run"):
        admitted(lasting(tmp_path, **now), old)


def test_default_that_is_written_out_is_no_change(tmp_path):
    old = admitted(load_job(job_file(tmp_path)), None)
    assert admitted(load_job(job_file(tmp_path, method__type="Full")), old)["metadata"]["uid"] == old["metadata"]["uid"]


def test_another_namespace_is_refused(tmp_path):
    job = load_job(job_file(tmp_path))
    old = admitted(job, None)
    old["metadata"]["namespace"] = "other"
    with pytest.raises(ConfigError, match=r"metadata\.namespace changed"):
        admitted(job, old)


def test_what_was_stored_is_read_back(home):
    manifest = a_job() | {"status": {"phase": "Running"}}
    store(home, manifest)
    assert stored(home) == manifest
    assert [path.name for path in home.directory.iterdir()] == ["status.yaml"]


def test_nothing_stored_is_none(home):
    assert stored(home) is None


@pytest.mark.parametrize("text", ["", "a: [", "[]", "kind: x", "\0"])
def test_damaged_file_is_reported_with_the_way_out(home, text):
    home.directory.mkdir(parents=True)
    home.status_file.write_text(text)
    with pytest.raises(IntegrityError) as caught:
        stored(home)
    assert caught.value.hint == f"rm {home.status_file} forgets the last run and keeps its checkpoints"


@pytest.mark.parametrize("name", ["Größe \u8bad\u7ec3", "\u202e", "\x1b[2J", "\x85", "a\nb", "\ufeff"])
def test_an_object_is_printed_without_what_a_terminal_obeys_and_read_back_as_it_was(name):
    output = io.StringIO()
    write_yaml([{"metadata": {"name": name}}], output)
    assert yaml.safe_load(output.getvalue()) == {"metadata": {"name": name}}
    assert output.getvalue().replace("\n", "").isprintable()
    assert name in output.getvalue() or not name.isprintable()
