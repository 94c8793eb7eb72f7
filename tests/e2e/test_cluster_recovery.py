"""Jobs in real pods that lose a pod or a node, and are done all the same."""

import time
from typing import Any

import pytest

from support.cluster.jobs import STEPS, tiny
from support.cluster.kube import Namespace, TrainingJob, cluster, wait_until


@pytest.mark.parametrize("index", [0, pytest.param(1, marks=pytest.mark.long)])
def test_training_goes_on_from_the_last_checkpoint_when_a_pod_is_deleted(
    namespace: Namespace, index: int, record_property: Any
) -> None:
    job = tiny(namespace)
    job.wait_for_step(18)
    victim = job.pods[index]["metadata"]["name"]
    began = time.monotonic()
    namespace.kubectl("delete", "pod", "--grace-period=0", "--force", victim)
    record_property(f"pod {index} deleted: seconds to the next step", seconds_to_attempt_2(job, began))
    status = job.wait_for("Succeeded", 180)
    assert status["attempt"] == 2
    assert set(job.steps) == set(range(1, STEPS + 1))


def test_training_goes_on_from_the_last_checkpoint_when_a_node_dies(namespace: Namespace, record_property: Any) -> None:
    job = tiny(namespace)
    job.wait_for_step(18)
    began = time.monotonic()
    cluster("kill-node", "1")
    try:
        record_property("node killed: seconds to the next step", seconds_to_attempt_2(job, began))
        assert {pod["spec"]["nodeName"] for pod in job.pods} == {"node-0"}
    finally:
        cluster("start-node", "1")
    status = job.wait_for("Succeeded", 180)
    assert status["lastFailure"]["reason"] == "NodeLost"
    assert status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 1}


def seconds_to_attempt_2(job: TrainingJob, began: float) -> float:
    wait_until(f"attempt 2 of {job.name} trains", lambda: job.trains_again(2), 300)
    return round(time.monotonic() - began, 1)
