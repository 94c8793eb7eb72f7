"""`dstj status` and `dstj logs` of jobs in a cluster."""

import pytest
import yaml

import dstj.remote.pod_logs
from deepseek_operator.jobs import labels
from dstj.cli import main
from support.builders.cli import a_job, job_file
from support.fakes.job_api_server import ROOT, FakeCluster

JOBS = f"{ROOT}/namespaces/ml/deepseektrainingjobs"
PODS = "/api/v1/namespaces/ml/pods"
RUNNING = {
    "phase": "Running",
    "message": "all 2 pods are ready",
    "attempt": 2,
    "restarts": {"job": 1},
    "lastCheckpoint": {"step": 20, "sizeBytes": 3 << 19, "sealed": True},
    "trainerStatus": {"step": 40, "maxSteps": 120, "metrics": [{"name": "loss", "value": "2.31"}]},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(dstj.remote.pod_logs, "POLL_S", 0.01)


def hold_job(cluster: FakeCluster, status=RUNNING, name="tiny", **changes):
    job = a_job(name, **changes) | {"status": status}
    job["metadata"] |= {"namespace": "ml", "uid": f"uid-of-{name}", "managedFields": [{"manager": "kubectl"}]}
    cluster.objects[f"{JOBS}/{name}"] = job


def hold_pod(cluster: FakeCluster, node=0, attempt=2, suffix="x", *, prepare="terminated", trainer="running"):
    """A pod of the job tiny whose containers have written one line each, where they have started."""
    name = f"tiny-a{attempt}-{node}-{suffix}"
    states = {"prepare": prepare, "trainer": trainer}
    init, main_ = ([{"name": each, "state": {state: {}}}] for each, state in states.items())
    cluster.objects[f"{PODS}/{name}"] = {
        "metadata": {
            "name": name,
            "uid": f"uid-of-{name}",
            "creationTimestamp": f"2026-01-02T03:00:0{attempt}Z",
            "labels": {labels.JOB_UID: "uid-of-tiny", labels.ATTEMPT: str(attempt)},
            "annotations": {labels.COMPLETION_INDEX: str(node)},
        },
        "status": {"phase": "Running", "initContainerStatuses": init, "containerStatuses": main_},
    }
    for container, state in states.items():
        if state != "waiting":
            cluster.logs[name, container] = f"{container} of {name}\n"
    return name


def test_status_of_a_job_in_the_cluster_names_its_claim_and_the_next_command(cluster, capsys):
    hold_job(cluster)
    assert main(["status", "tiny"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "tiny: Running: all 2 pods are ready",
        "  progress      step 40/120, loss 2.31",
        "  checkpoint    step 20 (1.5 MiB, sealed), in claim dstj-tiny, checkpoints",
        "  attempts      2, restarts: 1 after failures",
        "  logs          dstj logs tiny -n ml",
    ]


def test_status_of_a_finished_job_names_the_result(cluster, capsys):
    hold_job(cluster, {"phase": "Succeeded"}, checkpoint={"volume": {"claimName": "work"}})
    assert main(["status", "tiny"]) == 0
    assert "  result        claim work, export/tiny\n" in capsys.readouterr().out


def test_status_of_a_job_that_no_operator_has_seen_is_pending(cluster, capsys):
    hold_job(cluster, {})
    assert main(["status", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny: Pending\n")


def test_status_prints_the_object_without_its_managed_fields(cluster, capsys):
    hold_job(cluster)
    assert main(["status", "tiny", "-o", "yaml"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["status"], shown["metadata"]["uid"]) == (RUNNING, "uid-of-tiny")
    assert "managedFields" not in shown["metadata"]


def test_status_of_a_namespace_is_the_table_of_local_jobs(cluster, capsys):
    for name, status in (("tiny", RUNNING), ("other", {})):
        hold_job(cluster, status, name)
    assert main(["status", "-n", "ml"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "NAME    PHASE     STEP     LOSS   ATTEMPT   RESTARTS           CHECKPOINT",
        "other   Pending   -        -      0         0                  -",
        "tiny    Running   40/120   2.31   2         1 after failures   step 20 (1.5 MiB, sealed)",
    ]


def test_status_of_an_empty_namespace_says_how_to_fill_it(cluster, capsys):
    assert main(["status", "-n", "bio"]) == 0
    assert capsys.readouterr().out == "no jobs in namespace bio (test); dstj submit FILE makes one\n"


def test_job_that_was_run_here_comes_first_unless_a_namespace_is_given(run_dstj, cluster, place, capsys):
    run_dstj("run", job_file(place))
    hold_job(cluster)
    capsys.readouterr()
    assert main(["status", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny: Succeeded")
    assert main(["status", "tiny", "-n", "ml"]) == 0
    assert capsys.readouterr().out.startswith("tiny: Running")


def test_status_of_all_local_jobs_asks_no_cluster(cluster, capsys):
    assert main(["status"]) == 0
    assert cluster.requests == []
    assert "dstj status -n NAMESPACE" in capsys.readouterr().out


def test_logs_are_those_of_node_0_of_the_newest_attempt(cluster, capsys):
    hold_job(cluster)
    for attempt, node in ((1, 0), (2, 0), (2, 1)):
        hold_pod(cluster, node, attempt)
    assert main(["logs", "tiny"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "[0 prepare] prepare of tiny-a2-0-x",
        "[0 trainer] trainer of tiny-a2-0-x",
    ]


def test_logs_of_one_node_container_and_attempt(cluster, capsys):
    hold_job(cluster)
    hold_pod(cluster, 1, 1)
    assert main(["logs", "tiny", "--node", "1", "--attempt", "1", "--container", "trainer"]) == 0
    assert capsys.readouterr().out == "[1 trainer] trainer of tiny-a1-1-x\n"


def test_logs_of_a_replaced_pod_are_those_of_the_newest(cluster, capsys):
    hold_job(cluster)
    hold_pod(cluster, suffix="b")
    newest = hold_pod(cluster, suffix="a")
    cluster.objects[f"{PODS}/{newest}"]["metadata"]["creationTimestamp"] = "2026-01-02T03:09:00Z"
    assert main(["logs", "tiny"]) == 0
    assert f"of {newest}" in capsys.readouterr().out


def test_logs_of_a_node_that_has_no_pod_name_those_that_have(cluster, capsys):
    hold_job(cluster)
    for node in (0, 10, 2):
        hold_pod(cluster, node)
    assert main(["logs", "tiny", "--node", "7"]) == 64
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "dstj: error: job ml/tiny: no pod of attempt 2, node 7"
    assert "nodes of attempt 2 with a pod: 0, 2, 10" in hint


def test_logs_of_a_pod_that_has_not_started_say_how_to_wait(cluster, capsys):
    hold_job(cluster)
    hold_pod(cluster, prepare="waiting", trainer="waiting")
    assert main(["logs", "tiny"]) == 64
    error, hint = capsys.readouterr().err.splitlines()
    assert error.endswith("no container has started (prepare, trainer)")
    assert "--follow waits for it" in hint


def test_logs_followed_wait_for_the_pod_and_for_its_trainer(cluster, capsys):
    hold_job(cluster, {"phase": "Pending", "attempt": 2})
    nothing = [lambda: None]
    cluster.after = [
        *2 * nothing,  # the job, its pods: none yet
        lambda: hold_pod(cluster, trainer="waiting"),
        *6 * nothing,
        lambda: hold_pod(cluster),
    ]
    assert main(["logs", "tiny", "-f"]) == 0
    assert cluster.after == []
    assert capsys.readouterr().out.splitlines() == [
        "[0 prepare] prepare of tiny-a2-0-x",
        "[0 trainer] trainer of tiny-a2-0-x",
    ]
    assert {query["follow"] for _, path, query in cluster.requests if path.endswith("/log")} == {"true"}


@pytest.mark.parametrize("phase", ["Failed", "Suspended"])
def test_logs_followed_do_not_wait_for_a_job_at_rest(cluster, capsys, phase):
    hold_job(cluster, {"phase": phase, "attempt": 2})
    assert main(["logs", "tiny", "-f"]) == 64
    assert "nodes of attempt 2 with a pod: none" in capsys.readouterr().err


def test_logs_followed_end_with_a_pod_whose_trainer_never_starts(cluster, capsys):
    hold_job(cluster)
    name = hold_pod(cluster, trainer="waiting")
    cluster.objects[f"{PODS}/{name}"]["status"]["phase"] = "Failed"
    assert main(["logs", "tiny", "-f"]) == 0
    assert capsys.readouterr().out == f"[0 prepare] prepare of {name}\n"


def test_logs_that_may_not_be_read_are_refused_in_one_line(cluster, capsys):
    hold_job(cluster)
    name = hold_pod(cluster)
    cluster.refusals["GET", f"{PODS}/{name}/log"] = 403, 'pods "x" is forbidden'
    assert main(["logs", "tiny"]) == 64
    assert capsys.readouterr().err.startswith(f'dstj: error: log of {name}: pods "x" is forbidden\n')
