"""Why an attempt failed, from a real pod to the job's status: rank, node, exit code and last words."""

import json
from typing import Any

from deepseek_trainer.storage.keyring import KEYRING
from support.cluster import kube
from support.cluster.kube import Namespace, TrainingJob, example, wait_until


def sealed(namespace: Namespace, **changes: Any) -> TrainingJob:
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    namespace.key("its-key")
    checkpoint = {"encryption": {"keyRef": {"secretName": "its-key"}}, "gracePeriodSeconds": 30}
    return TrainingJob(namespace, example("pretrain-tiny", checkpoint=checkpoint, **changes))


def test_a_rank_that_is_killed_again_and_again_fails_its_attempt_and_the_status_says_which(
    namespace: Namespace, record_property: Any
) -> None:
    once = {"runPolicy": {"maxRestarts": 0}, "optimization": {"onOutOfMemory": "Fail"}}
    job = sealed(namespace, trainer={"numNodes": 1}, **once)
    kills: list[bool] = []

    def is_over() -> bool:
        kills.append(is_killed(job))
        return job.status.get("phase") == "Failed"

    wait_until("the attempt fails", is_over, 300, every_s=1)
    record_property("a rank killed: kills until its pod fails", sum(kills))
    failure, (victim,) = job.status["lastFailure"], job.pods
    assert (failure["rank"], failure["node"], failure["exitCode"], failure["reason"]) == (0, 0, 75, "Killed")
    assert (failure["podName"], failure["nodeName"]) == (victim["metadata"]["name"], victim["spec"]["nodeName"])
    assert "killed (SIGKILL)" in failure["message"]
    ended = job.condition("Failed") or {}
    assert ended["reason"] == "RestartBudgetExhausted"
    assert "node 0 rank 0 failed with exit code 75 (Killed)" in ended["message"]


def is_killed(job: TrainingJob) -> bool:
    """Whether there was a rank to kill in the job's pod."""
    kill = ("-c", "trainer", "--", "sh", "-c", "kill -9 $(cat /tmp/ranks/0)")
    try:
        job.namespace.kubectl("exec", *(pod["metadata"]["name"] for pod in job.pods), *kill)
    except AssertionError:  # no pod, container or rank yet, or none any more
        return False
    return True


def test_a_job_that_is_given_another_key_ends_with_code_77_and_what_to_do(namespace: Namespace) -> None:
    job = sealed(namespace)
    wait_until("its keyring", (job.work / KEYRING).exists, 120)
    suspend(job, True)
    job.wait_for("Suspended")
    namespace.key("its-key")
    suspend(job, False)
    failure = job.wait_for("Failed")["lastFailure"]
    assert (failure["exitCode"], failure["reason"]) == (77, "Integrity")
    assert f"wrong key: /work/{KEYRING} is wrapped by the key-encryption key" in failure["message"]
    assert "(hint: mount the Secret that the job was started with" in failure["message"]


def suspend(job: TrainingJob, wanted: bool) -> None:
    job.namespace.kubectl("patch", "dstj", job.name, "--type=merge", "-p", json.dumps({"spec": {"suspend": wanted}}))
