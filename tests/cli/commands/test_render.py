"""`dstj render`: the objects that the operator would apply, byte for byte."""

import pytest
import yaml

from deepseek_operator.jobs.blueprint import Blueprint
from deepseek_operator.jobs.manifests import children
from deepseek_operator.objects.observed import Owner
from deepseek_operator.settings import Settings
from dstj.cli import main
from dstj.jobfile import load_job
from support.builders.cli import job_file

IMAGE = f"trainer@sha256:{64 * 'a'}"


@pytest.fixture
def rendered(tmp_path, capsys):
    def render(*options: str, **changes):
        path = job_file(tmp_path, **changes)
        assert main(["render", str(path), *options]) == 0
        return path, capsys.readouterr().out

    return render


def test_render_prints_what_the_operator_applies(rendered):
    path, text = rendered("--uid", "u-1", "--attempt", "2", trainer={"image": IMAGE})
    job = load_job(path)
    owner = Owner("default", "tiny", "u-1")
    wanted = children(Blueprint(job.spec, owner, None, Settings(), attempt=2, job_labels={}, makes_claim=False))
    assert list(yaml.safe_load_all(text)) == list(wanted)


def test_render_writes_yaml_without_anchors(rendered):
    _, text = rendered(trainer={"image": IMAGE})
    assert "&id" not in text
    assert "*id" not in text


def test_render_takes_the_image_from_a_profile_file(tmp_path, rendered):
    profile = {"apiVersion": "training.dstj.io/v1alpha1", "kind": "TrainingProfile", "metadata": {"name": "cpu"}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile | {"spec": {"image": IMAGE}}))
    _, text = rendered("--profile", str(tmp_path / "profile.yaml"))
    worker = list(yaml.safe_load_all(text))[-1]
    assert worker["spec"]["template"]["spec"]["containers"][0]["image"] == IMAGE


def test_render_without_the_profile_says_how_to_give_it(tmp_path, capsys):
    path = job_file(tmp_path)
    assert main(["render", str(path)]) == 64
    error, hint = capsys.readouterr().err.splitlines()
    assert error.endswith("spec.trainer.profile: 'cpu' is in no file given (profiles there: none)")
    assert f"dstj render {path} --profile FILE" in hint
