"""Reading job files: every bad one is reported with file, line and the way out."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deepseek_trainer.contract.errors import ConfigError
from dstj.cli import main
from dstj.jobfile import documents, load_job, problems
from support.builders.cli import a_job, job_file

GOOD = yaml.safe_dump(a_job())


def errors_of(capsys: pytest.CaptureFixture[str], path: Path) -> list[str]:
    assert main(["validate", str(path)]) == 64
    return capsys.readouterr().err.replace(f"{path.parent}/", "").splitlines()


def test_good_file_is_ok(tmp_path, capsys):
    path = job_file(tmp_path)
    assert main(["validate", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}: ok\n"


# Each name is a list of the one before, twice: a thousand million words in thirty lines.
BOMB = "".join(f"x{i}: &l{i} [{f'*l{i - 1}, *l{i - 1}' if i else 'x'}]\n" for i in range(30))


@pytest.mark.parametrize(
    ("text", "first_line"),
    [
        ("a: b: c\n", "bad.yaml:1:5: not YAML: mapping values are not allowed here"),
        ("a:\n\tb: 1\n", "bad.yaml:2:1: not YAML: found character '\\t' that cannot start any token"),
        ("a: 1\na: 2\n", "bad.yaml:2:1: not YAML: 'a' is given twice"),
        ("", "bad.yaml: no YAML document in it"),
        ("- a\n", "bad.yaml:1: document: is a list, must be a mapping with apiVersion, kind, metadata and spec"),
        ("kind: Pod\napiVersion: v1\n", "bad.yaml: holds no DeepSeekTrainingJob and no TrainingProfile"),
        ("a: \x07\n", "bad.yaml: not YAML: unacceptable character #x0007: special characters are not allowed"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        (
            GOOD.replace("v1alpha1", "v9"),
            "bad.yaml:1: apiVersion: 'training.dstj.io/v9' must be training",
        ),
        (GOOD.replace("name: tiny", "name: Tiny_1"), "metadata.name: 'Tiny_1' must be 1 to 50 of a-z"),
        (GOOD.replace("name: tiny", f"name: {51 * 'x'}"), "must be 1 to 50 of a-z"),
        (GOOD.replace("name: tiny", "nam: tiny"), "metadata.name: None must be"),
        (GOOD.replace("numNodes: 1", "numNodes: '1'"), "spec.trainer.numNodes: input should be a valid integer"),
        (
            GOOD.replace("numNodes: 1", "numNodes: 0"),
            "spec.trainer.numNodes: input should be greater than or equal",
        ),
        (GOOD.replace("numNodes:", "numNode:"), "spec.trainer.numNode: unknown field, did you mean 'numNodes'"),
        (GOOD.replace("globalBatchSize: 4", "globalBatchSize: 4\n    maxSteps: yes"), "spec.optimization.maxSteps"),
        (GOOD.replace("numProcPerNode: 1", "numProcPerNode: 3"), "globalBatchSize must be a multiple"),
        (GOOD.replace("claimName: corpus", "path: x"), "spec.data.train.claimName: field required"),
        (GOOD.split("spec:")[0], "spec: None must be a mapping"),
        (GOOD.replace("kind: DeepSeekTrainingJob", "kind: [a]"), "kind: ['a'] must be DeepSeekTrainingJob or"),
        (GOOD.replace("name: tiny", "name: tiny\n  labels: [a]"), "metadata.labels: ['a'] must be a mapping"),
        (GOOD.replace("numNodes: 1", "numNodes: &a [*a]"), "not YAML: aliases make more than"),
        ("? [a]\n: 1\n", "bad.yaml:1:3: not YAML: a key is a list or a mapping"),
        (f"kind: 0x{10_000 * 'f'}\n", "apiVersion: None must be training"),
        (BOMB + GOOD.replace("kind: DeepSeekTrainingJob", "kind: *l29"), "not YAML: aliases make more than 1,048,576"),
        ("a: " + 600 * "[", "not YAML: maximum recursion depth"),
        (GOOD + "extra: 1\n", "extra: unknown field"),
    ],
)
def test_bad_file_is_reported_in_one_line_with_code_64(tmp_path, capsys, text, first_line):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    first = errors_of(capsys, path)[0]
    assert first.startswith("dstj: error: ")
    assert first_line in first


BAD_SPEC = {
    "trainer": {"image": "trainer:latest", "numNodes": 0, "numProcPerNode": "2"},
    "model": {"architecture": {"hiddenSize": 10, "numHeads": 4, "numLayers": 1, "vocabSize": 260}},
    "data": {"train": {"claimName": "Corpus_1", "path": "../secrets"}, "sequenceLength": 1e9, "format": None},
    "method": {"type": "Lora"},
    "optimization": {"maxSteps": True, "learningRate": f"{80 * 'x'}", "precision": ["BF16"]},
    "checkpoint": {"volume": {"size": 1.5}},
    "network": {"egress": [{"cidr": "10.0.0.0/8", "ports": [0, 443]}]},
    "export": {"formats": "Merged", "format": "Adapter"},
}
BREAKS_RULES = {
    "trainer__image": f"trainer@sha256:{64 * 'a'}",
    "model__architecture__hiddenSize": 10,
    "model__architecture__numHeads": 4,
    "data__train__path": "../secrets",
    "optimization__epochs": 1,
    "optimization__maxSteps": 2,
    "checkpoint__interval": {},
    "checkpoint__volume": {"claimName": "work", "storageClassName": "fast"},
    "network__egress": [{"cidr": "0.0.0.0/0", "ports": [443]}],
}


def test_messages_name_field_rule_and_value_as_in_the_golden_file(tmp_path, capsys, golden):
    path = tmp_path / "bad.yaml"
    several = [
        a_job("Tiny_1") | {"spec": BAD_SPEC},
        a_job("rules", **BREAKS_RULES),
        a_job("batch", optimization__globalBatchSize=3, trainer__numNodes=2),
        a_job("gpus", trainer__resourcesPerNode={"limits": {"nvidia.com/gpu": "2"}}),
        a_job("key", data__sealed=True),
        a_job("formats", export__formats=["Adapter", "Merged"]),
        a_job("none") | {"spec": "none", "apiVersion": "v1"},
    ]
    path.write_text(yaml.safe_dump_all(several))
    golden("messages/validate.txt", "\n".join(errors_of(capsys, path)) + "\n")


def test_job_is_held_to_the_gpus_of_a_profile_in_any_of_the_files(tmp_path, capsys):
    spec = {"image": f"trainer@sha256:{64 * 'a'}", "resourcesPerNode": {"limits": {"nvidia.com/gpu": 8}}}
    profile = {"apiVersion": "training.dstj.io/v1alpha1", "kind": "TrainingProfile", "metadata": {"name": "cpu"}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile | {"spec": spec}))
    path = job_file(tmp_path)
    line = 1 + path.read_text().splitlines().index("    numProcPerNode: 1")
    wanted = f"tiny.yaml:{line}: spec.trainer.numProcPerNode: must equal nvidia.com/gpu of TrainingProfile 'cpu'"
    for command in (["validate", str(path), str(tmp_path / "profile.yaml")], ["render", str(path), "--profile"]):
        assert main([*command, str(tmp_path / "profile.yaml")]) == 64
        assert wanted in capsys.readouterr().err
    path.write_text(f"{path.read_text()}---\n{(tmp_path / 'profile.yaml').read_text()}")
    assert main(["run", str(path)]) == 64
    assert wanted in capsys.readouterr().err


def test_job_is_held_to_the_most_that_a_profile_lets_it_ask_for(tmp_path, capsys):
    spec = {"image": f"trainer@sha256:{64 * 'a'}", "limits": {"maxVolumeSize": "1Mi"}}
    profile = {"apiVersion": "training.dstj.io/v1alpha1", "kind": "TrainingProfile", "metadata": {"name": "cpu"}}
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(profile | {"spec": spec}))
    assert main(["validate", str(job_file(tmp_path)), str(tmp_path / "profile.yaml")]) == 64
    assert "is more than 1Mi, the most of TrainingProfile 'cpu': ask for less" in capsys.readouterr().err


def test_problem_of_a_field_names_its_line(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace("numNodes: 1", "numNodes: 0"))
    line = 1 + GOOD.splitlines().index("    numNodes: 1")
    assert errors_of(capsys, path)[0].startswith(f"dstj: error: bad.yaml:{line}: spec.trainer.numNodes: ")


def test_every_problem_is_listed(tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text(GOOD.replace("numNodes: 1", "numNodes: 0").replace("name: tiny", "name: T"))
    assert len(errors_of(capsys, path)) == 2


def test_every_file_is_checked_also_after_a_bad_one(tmp_path, capsys):
    assert main(["validate", str(tmp_path / "none.yaml"), str(job_file(tmp_path))]) == 64
    assert capsys.readouterr().out.endswith("tiny.yaml: ok\n")


def test_missing_file_names_those_beside_it(tmp_path):
    job_file(tmp_path)
    with pytest.raises(ConfigError) as caught:
        documents(tmp_path / "tyni.yaml")
    assert caught.value.hint == "YAML files there: tiny.yaml"


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_bytes(b"\xff\xfe")])
def test_what_is_no_text_file_is_refused(tmp_path, make):
    make(tmp_path / "x.yaml")
    with pytest.raises(ConfigError):
        documents(tmp_path / "x.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("5e-5", 5e-5), ("1e3", 1000.0), ("-2E+4", -2e4), ("2024-01-01", "2024-01-01"), ("1_0", 10), ("x1e3", "x1e3")],
)
def test_scalar_is_read_as_the_api_server_reads_it(tmp_path, text, value):
    (tmp_path / "x.yaml").write_text(f"a: {text}\n")
    assert documents(tmp_path / "x.yaml")[0].content == {"a": value}


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["e", "E"]))
def test_every_number_in_scientific_notation_is_a_number(number, letter):
    from dstj.jobfile import _Loader

    text = f"{number:e}".replace("e", letter)
    assert _Loader(f"a: {text}").get_single_data() == {"a": float(text)}


def test_objects_of_others_in_the_same_file_are_left_to_the_api_server(tmp_path):
    path = job_file(tmp_path)
    path.write_text(f"{path.read_text()}---\napiVersion: v1\nkind: Secret\nunknown: field\n")
    assert load_job(path).name == "tiny"


def test_profile_in_the_same_file_is_found(tmp_path):
    path = job_file(tmp_path)
    profile = {"apiVersion": "training.dstj.io/v1alpha1", "kind": "TrainingProfile", "metadata": {"name": "cpu"}}
    profile["spec"] = {"image": f"trainer@sha256:{64 * 'a'}"}
    path.write_text(f"{path.read_text()}---\n{yaml.safe_dump(profile)}")
    assert load_job(path).profiles == {"cpu": profile}


def test_two_jobs_in_one_file_are_refused_where_one_is_wanted(tmp_path):
    path = job_file(tmp_path)
    path.write_text(f"{path.read_text()}---\n{yaml.safe_dump(a_job('other'))}")
    with pytest.raises(ConfigError, match=r"holds 2 jobs \(tiny, other\), must be one"):
        load_job(path)


@pytest.mark.parametrize(
    "example", sorted((Path(__file__).parents[2] / "examples").glob("*.yaml")), ids=lambda p: p.name
)
def test_example_is_valid(example, capsys):
    assert main(["validate", str(example)]) == 0


def test_a_job_file_may_come_through_a_pipe_of_the_shell(tmp_path: Path) -> None:
    job, dstj = shlex.quote(str(job_file(tmp_path))), f"{shlex.quote(sys.executable)} -m dstj.cli"
    for command in (f"cat {job} | {dstj} validate /dev/stdin", f"{dstj} validate <(cat {job})"):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_a_device_without_end_is_no_job_file() -> None:
    with pytest.raises(ConfigError, match="/dev/zero: more than 16,777,216 bytes"):
        documents(Path("/dev/zero"))


def test_a_warm_up_of_more_steps_than_the_run_is_refused_where_no_data_are_needed_to_know(tmp_path):
    path = job_file(tmp_path, optimization__maxSteps=4, optimization__warmupSteps=6)
    (document,) = documents(path)
    (problem,) = problems(document)
    assert "spec.optimization.warmupSteps: 6 is more than the 4 steps of the run" in problem
