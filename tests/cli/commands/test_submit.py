"""`dstj submit`, `suspend`, `resume`: what they ask of a cluster, and how its refusals are reported."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from deepseek_operator.api.names import API_VERSION, PROFILE_KIND
from dstj.cli import main
from support.builders.cli import a_job, job_file, job_home
from support.fakes.job_api_server import ROOT, FakeCluster, kubeconfig

JOB = f"{ROOT}/namespaces/ml/deepseektrainingjobs/tiny"
PROFILE = {
    "apiVersion": API_VERSION,
    "kind": PROFILE_KIND,
    "metadata": {"name": "cpu"},
    "spec": {"image": f"trainer@sha256:{64 * 'a'}"},
}


def submitted(cluster: FakeCluster, **changes):
    """A job in the cluster as the API server holds it."""
    job = a_job(**changes)
    job["metadata"] |= {"namespace": "ml", "uid": "u-1", "generation": 1, "managedFields": [{"manager": "kubectl"}]}
    cluster.objects[JOB] = job
    return job


def errors_of(capsys, *arguments: object, code: int) -> list[str]:
    assert main([str(argument) for argument in arguments]) == code
    return capsys.readouterr().err.splitlines()


def test_submit_creates_the_job_in_the_namespace_of_the_context(cluster, place, capsys):
    assert main(["submit", str(job_file(place))]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == ["job ml/tiny: created (context test)", "next: dstj status tiny -n ml"]
    assert cluster.objects[JOB]["spec"] == a_job()["spec"]
    assert cluster.writes() == [("PATCH", JOB, {"fieldManager": "dstj", "fieldValidation": "Strict"})]


def test_submit_prints_what_changed_and_what_did_not(cluster, place, capsys):
    for changes, outcome in (({}, "created"), ({}, "unchanged"), ({"runPolicy__maxRestarts": 9}, "configured")):
        assert main(["submit", str(job_file(place, **changes))]) == 0
        assert capsys.readouterr().out.startswith(f"job ml/tiny: {outcome} ")


def test_submit_leaves_a_suspended_job_suspended(cluster, place):
    submitted(cluster, suspend=True)
    assert main(["submit", str(job_file(place))]) == 0
    assert cluster.objects[JOB]["spec"]["suspend"] is True


def test_submit_dry_run_keeps_nothing_and_names_no_next_command(cluster, place, capsys):
    assert main(["submit", str(job_file(place)), "--dry-run"]) == 0
    assert capsys.readouterr().out == "job ml/tiny: created (context test, dry run)\n"
    assert cluster.objects == {}
    assert cluster.writes()[0][2]["dryRun"] == "All"


def test_submit_applies_profiles_first_and_leaves_out_what_is_not_ours(cluster, place, capsys):
    path = job_file(place)
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}}
    path.write_text(yaml.safe_dump_all([a_job(), PROFILE, secret]))
    assert main(["submit", str(path), "-n", "bio"]) == 0
    profile = f"{ROOT}/trainingprofiles/cpu"
    assert list(cluster.objects) == [profile, JOB.replace("/ml/", "/bio/")]
    assert capsys.readouterr().out.splitlines() == [
        "profile cpu: created (context test)",
        "job bio/tiny: created (context test)",
        "next: dstj status tiny -n bio",
        f"left out: Secret; kubectl apply -f {path} applies all that is in the file",
    ]


def test_submit_never_sends_what_the_api_server_wrote_itself(cluster, place):
    path = place / "dump.yaml"
    path.write_text(yaml.safe_dump(submitted(cluster) | {"status": {"phase": "Failed"}}))
    cluster.objects.clear()
    assert main(["submit", str(path)]) == 0
    assert cluster.objects[JOB].keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert cluster.objects[JOB]["metadata"] == {"name": "tiny", "namespace": "ml"}


def test_submit_checks_every_file_before_it_asks_the_cluster(cluster, place, capsys):
    bad = job_file(place, "bad", trainer__numNodes=0)
    errors = errors_of(capsys, "submit", job_file(place), bad, code=64)
    assert errors[0].endswith("spec.trainer.numNodes: input should be greater than or equal to 1, not 0")
    assert cluster.requests == []


def test_submit_refuses_two_namespaces(cluster, place, capsys):
    path = place / "job.yaml"
    path.write_text(yaml.safe_dump(a_job() | {"metadata": {"name": "tiny", "namespace": "a"}}))
    error, hint = errors_of(capsys, "submit", path, "-n", "b", code=64)
    assert error.endswith("metadata.namespace: 'a' is not the --namespace given, 'b'")
    assert hint == "dstj: hint: leave out one of them"
    assert cluster.writes() == []


@pytest.mark.parametrize(
    ("refusal", "code", "hint"),
    [
        ((400, "strict decoding error: unknown field"), 64, "put the file right"),
        ((401, "Unauthorized"), 64, "log in to test again"),
        ((403, 'deepseektrainingjobs is forbidden: User "eve" cannot patch'), 64, "kubectl auth can-i --list -n ml"),
        ((404, 'namespaces "ml" not found'), 64, "kubectl get crd deepseektrainingjobs.training.dstj.io"),
        ((409, "Apply failed with 1 conflict: .spec.suspend"), 64, "--force-conflicts --field-manager=dstj"),
        ((409, "object is being deleted"), 75, "give the same command again"),
        ((422, "DeepSeekTrainingJob is invalid:\n  spec: data is immutable"), 64, "put the file right"),
        ((429, "too many requests"), 75, "give the same command again"),
        ((503, "<html>apiserver not ready</html>"), 75, "give the same command again"),
    ],
)
def test_refusal_of_the_cluster_is_one_line_with_a_way_out(cluster, capsys, refusal, code, hint):
    cluster.refusals["PATCH", JOB] = refusal
    errors = errors_of(capsys, "submit", job_file(Path()), code=code)
    assert errors[0] == f"dstj: error: tiny: {' '.join(refusal[1].split())}"
    assert hint in errors[1]
    assert len(errors) == 2


def test_cluster_that_cannot_be_reached_is_named_and_can_be_tried_again(place, capsys):
    kubeconfig(place, "http://127.0.0.1:1")
    error, hint = errors_of(capsys, "submit", job_file(place), code=75)
    assert error.startswith("dstj: error: http://127.0.0.1:1 (context test): Cannot connect to host 127.0.0.1:1")
    assert "kubectl cluster-info" in hint


def test_submit_without_a_kubeconfig_says_what_needs_none(place, capsys):
    error, hint = errors_of(capsys, "submit", job_file(place), code=64)
    assert error == f"dstj: error: no kubeconfig at {place}/kubeconfig"
    assert "dstj run" in hint


@pytest.mark.parametrize("text", ["a: [", "- a", "", "current-context: x\n", "\x00"])
def test_broken_kubeconfig_is_one_line(place, capsys, text):
    (place / "kubeconfig").write_text(text)
    error, _ = errors_of(capsys, "submit", job_file(place), code=64)
    assert f"kubeconfig {place}/kubeconfig: cannot be used: " in error


def test_submit_without_the_client_names_the_extra(place):
    kubeconfig(place, "http://127.0.0.1:1")
    program = """
import sys
sys.modules["kubernetes"] = None
from dstj.cli import main
sys.exit(main(["submit", sys.argv[1]]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(job_file(place))], check=False, capture_output=True, text=True
    )
    error, hint = done.stderr.splitlines()
    assert done.returncode == 64
    assert error.startswith("dstj: error: the Kubernetes client is not installed")
    assert "pip install 'deepseek-training-operator[operator]'" in hint


@pytest.mark.parametrize(("command", "value"), [("suspend", True), ("resume", False)])
def test_suspend_and_resume_change_that_one_field(cluster, place, capsys, command, value):
    spec = submitted(cluster, suspend=not value)["spec"]
    assert main([command, "tiny"]) == 0
    assert cluster.objects[JOB]["spec"] == spec | {"suspend": value}
    assert cluster.writes() == [("PATCH", JOB, {"fieldManager": "dstj"})]
    assert capsys.readouterr().out.endswith("next: dstj status tiny -n ml\n")


@pytest.mark.parametrize(("command", "value"), [("suspend", True), ("resume", False)])
def test_suspend_and_resume_write_nothing_where_nothing_changes(cluster, place, capsys, command, value):
    submitted(cluster, suspend=value)
    assert main([command, "tiny"]) == 0
    assert cluster.writes() == []
    assert "unchanged" in capsys.readouterr().out


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_suspend_of_a_finished_job_is_refused(cluster, place, capsys, phase):
    submitted(cluster)["status"] = {"phase": phase}
    error, _ = errors_of(capsys, "suspend", "tiny", code=64)
    assert error == f"dstj: error: job ml/tiny: {phase} already"


def test_suspend_of_a_local_job_names_ctrl_c(run_dstj, cluster, place, capsys):
    run_dstj("run", job_file(place))
    capsys.readouterr()
    error, hint = errors_of(capsys, "suspend", "tiny", code=64)
    assert (error, cluster.requests) == ("dstj: error: tiny: was run on this machine", [])
    assert "Ctrl-C" in hint
    assert job_home().status_file.exists()


@pytest.mark.parametrize("command", ["suspend", "resume", "status", "logs"])
def test_job_that_is_nowhere_is_reported_with_both_places(cluster, place, capsys, command):
    error, hint = errors_of(capsys, command, "tiny", code=64)
    assert error == "dstj: error: no job 'tiny' was run here, nor is one in namespace ml (test)"
    assert "dstj status -n ml" in hint


@pytest.mark.parametrize("name", ["../pods/x", "a/b", "A", "?", "a b"])
def test_name_that_no_job_can_have_never_reaches_the_cluster(cluster, place, capsys, name):
    errors_of(capsys, "status", name, code=64)
    assert cluster.requests == []
