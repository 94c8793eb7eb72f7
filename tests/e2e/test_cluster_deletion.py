"""How a job goes: nothing of it is left, whether the operator is there or not."""

import pytest

from support.cluster import kube
from support.cluster.kube import Namespace, TrainingJob, a_job, example
from support.cluster.obstacles import LACKING


@pytest.mark.parametrize("operators", [2, 0], ids=["operator up", "operator down"])
def test_deletion_leaves_nothing_of_a_job_whose_pods_run(
    namespace: Namespace, operator_comes_back: None, operators: int
) -> None:
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    checkpoint = {"volume": {"whenDeleted": "Delete"}, "gracePeriodSeconds": 10}  # a pod that just starts hears no stop
    job = TrainingJob(namespace, example("pretrain-tiny", checkpoint=checkpoint))
    work = job.work
    kube.wait_until("its pods have written", lambda: any(work.rglob("*")), 180)
    of_job = ("-n", namespace.name, "-l", f"training.dstj.io/job-name={job.name}")
    kinds = {name.split("/")[0].split(".")[0] for name in kube.everything(*of_job)}
    assert kinds >= {"job", "networkpolicy", "persistentvolumeclaim", "pod", "service", "serviceaccount"}
    kube.scale_operator(operators)
    namespace.kubectl("delete", "dstj", job.name)
    kube.wait_until(f"nothing is left: {kube.everything(*of_job)}", lambda: not kube.everything(*of_job), 90)
    kube.wait_until("its volume's directory is removed", lambda: not work.exists(), 30)


def test_deletion_keeps_the_claim_unless_told_otherwise(namespace: Namespace) -> None:
    TrainingJob(namespace, a_job("kept", LACKING))
    kube.wait_until("the worker job", lambda: namespace.get("jobs", "kept-a1"), 20)
    namespace.kubectl("delete", "dstj", "kept")
    of_job = ("-n", namespace.name, "-l", "training.dstj.io/job-name=kept")
    kube.wait_until(
        f"only the claim is left: {kube.everything(*of_job)}",
        lambda: kube.everything(*of_job) == {"persistentvolumeclaim/dstj-kept"},
        40,
    )
