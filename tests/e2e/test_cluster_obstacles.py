"""What keeps a job from starting: the status and an event name the fix, and the job goes on by itself once it is done.

Only a Secret that is there and lacks the entry of the job ends it.

And how a job goes: nothing of it is left, whether the operator is there or not.
"""

import pytest

from deepseek_operator.jobs.spec import GPU
from support.cluster import kube
from support.cluster.kube import Namespace, TrainingJob, a_job, example

LACKING = {"trainer": {"image": None, "profile": "cpu"}, "data": {"train": {"claimName": "nobody-makes-it"}}}
NO_IMAGE = "localhost/no-such-trainer@sha256:" + "0" * 64
UNDER_WAY = {"PodsStarting", "AllNodesReady"}


def reason_of(job: TrainingJob) -> str:
    return str((job.condition("Running") or {}).get("reason"))


def told(job: TrainingJob, *reasons: str, timeout_s: float = 60) -> str:
    """The message of the condition, once it has one of `reasons`; an event says the same."""
    kube.wait_until(f"one of {reasons}: {job.status}", lambda: reason_of(job) in reasons, timeout_s)
    message, reason = job.status["message"], reason_of(job)
    events = job.namespace.list("events")
    about = [event["message"] for event in events if event["involvedObject"]["name"] == job.name]
    assert any(message[:200] in text for text in about), f"no event says of {reason} what the status says: {about}"
    return str(message)


def goes_on(job: TrainingJob, timeout_s: float = 120) -> None:
    kube.wait_until(f"{job.name} goes on: {job.status}", lambda: reason_of(job) in UNDER_WAY, timeout_s)
    assert job.status["attempt"] == 1, "what was missing cost no attempt"


def quota(namespace: Namespace, **hard: str) -> None:
    spec = {"hard": hard}
    namespace.apply({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "quota"}, "spec": spec})

    def in_force() -> bool:
        (found,) = namespace.list("resourcequotas")
        return bool(found["status"].get("hard") == hard)

    kube.wait_until(f"the quota of {hard} is in force", in_force)


def test_a_missing_secret_is_named_and_its_creation_starts_the_job(namespace: Namespace) -> None:
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    encryption = {"keyRef": {"secretName": "late-key"}}
    job = TrainingJob(namespace, example("pretrain-tiny", checkpoint={"encryption": encryption}))
    message = told(job, "FailedMount")
    assert 'secret "late-key" not found' in message
    assert "create the missing Secret or claim; the pods then go on by themselves" in message
    namespace.key("late-key")
    goes_on(job)


def test_a_secret_without_the_entry_that_the_job_names_ends_it_with_what_to_do(namespace: Namespace) -> None:
    """Its pods mount the Secret as a whole, so that the trainer is the first to miss the entry."""
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    namespace.key("other-key")
    encryption = {"keyRef": {"secretName": "other-key", "key": "kek-2"}}
    job = TrainingJob(namespace, example("pretrain-tiny", checkpoint={"encryption": encryption}))
    failure = job.wait_for("Failed")["lastFailure"]
    assert (failure["exitCode"], failure["reason"]) == (77, "Integrity")
    assert "no key-encryption key: /run/dstj/keys/kek-2" in failure["message"]
    assert "give the Secret the entry that keyRef.key names" in failure["message"]


def test_a_missing_claim_is_named_and_its_creation_starts_the_job(namespace: Namespace) -> None:
    job = TrainingJob(namespace, example("pretrain-tiny"))
    message = told(job, "Unschedulable")
    assert 'persistentvolumeclaim "texts" not found' in message
    assert "create the missing claim" in message
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    goes_on(job)


def test_a_bad_image_is_named_with_what_to_check(namespace: Namespace) -> None:
    namespace.claim("texts")
    trainer = {"profile": None, "image": NO_IMAGE}
    job = TrainingJob(namespace, a_job("no-image", {"trainer": trainer, "data": {"train": {"claimName": "texts"}}}))
    message = told(job, "ErrImagePull", "ImagePullBackOff")
    assert NO_IMAGE in message
    assert "check the image of the job or its profile" in message


def test_missing_data_end_a_job_with_a_condition_and_an_event_that_name_the_fix(namespace: Namespace) -> None:
    namespace.claim("texts")
    job = TrainingJob(namespace, example("pretrain-tiny"))
    status = job.wait_for("Failed")
    failed = job.condition("Failed") or {}
    assert (failed["status"], failed["reason"]) == ("True", "NotRetryable")
    failure = status["lastFailure"]
    assert (failure["exitCode"], failure["reason"]) == (65, "Data")
    assert "no 'train' in volume 'texts' (/volumes/texts/train)" in failure["message"]
    assert "(hint: check data.*.path in the job file)" in failure["message"]
    assert failure["message"] in failed["message"]
    assert status["message"] == failed["message"]
    events = [event for event in namespace.list("events") if event["involvedObject"]["name"] == job.name]
    assert [event["type"] for event in events if event["message"] == failed["message"][:1024]] == ["Warning"]


def test_a_missing_profile_is_named_and_its_creation_starts_the_job(namespace: Namespace) -> None:
    name = namespace.name
    job = TrainingJob(namespace, a_job("late", {**LACKING, "trainer": {"image": None, "profile": name}}))
    assert f"TrainingProfile '{name}' does not exist" in told(job, "ProfileNotFound")
    kube.apply(kube.profile(name, NO_IMAGE))
    try:
        kube.wait_until("the worker job", lambda: namespace.get("job", "late-a1"), 60)
    finally:
        kube.kubectl("delete", "trainingprofile", name)


@pytest.mark.parametrize("pods", [0, 1])
def test_a_job_over_the_quota_says_so_makes_no_pod_and_starts_when_there_is_room(
    namespace: Namespace, pods: int
) -> None:
    quota(namespace, pods=str(pods))
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    job = TrainingJob(namespace, example("pretrain-tiny"))
    message = told(job, "QuotaExceeded")
    assert f"ResourceQuota 'quota' is short of pods: 2 needed at once, {pods} of {pods} free, so it never" in message
    assert (job.status["phase"], (job.condition("Running") or {})["status"]) == ("Pending", "False")
    assert (namespace.list("jobs"), namespace.list("pods")) == ([], [])
    quota(namespace, pods="2")
    goes_on(job)
    assert warnings_about_pods(namespace) == []


def wants_gpus(namespace: Namespace, name: str, gpus: int) -> TrainingJob:
    """Two pods of an image that exists nowhere: they get machines and GPUs, and start nothing."""
    namespace.claim("texts")
    trainer = {"image": NO_IMAGE, "numProcPerNode": gpus, "resourcesPerNode": {"limits": {GPU: gpus}}}
    changes = {"trainer": trainer, "data": {"train": {"claimName": "texts"}}}
    return TrainingJob(namespace, a_job(name, changes | {"optimization": {"globalBatchSize": 2 * gpus}}))


def test_a_quota_of_gpus_holds_a_job_back_and_both_its_pods_get_theirs_once_it_is_raised(namespace: Namespace) -> None:
    quota(namespace, **{f"requests.{GPU}": "3"})
    job = wants_gpus(namespace, "gpus", 2)
    message = told(job, "QuotaExceeded")
    assert f"short of requests.{GPU}: 4 needed at once, 3 of 3 free, so it never fits" in message
    assert (namespace.list("jobs"), namespace.list("pods")) == ([], [])
    quota(namespace, **{f"requests.{GPU}": "4"})
    namespace.kubectl("label", f"dstj/{job.name}", "look=now")  # it would look by itself within a minute
    assert NO_IMAGE in told(job, "ErrImagePull", "ImagePullBackOff")
    assert [kube.gpus_of(pod) for pod in job.pods] == [("2", "2")] * 2
    assert all(pod["spec"]["nodeName"] for pod in job.pods)
    (found,) = namespace.list("resourcequotas")
    assert found["status"]["used"] == {f"requests.{GPU}": "4"}


def test_a_job_that_wants_more_gpus_than_any_machine_has_says_so(namespace: Namespace) -> None:
    message = told(wants_gpus(namespace, "too-many", 5), "Unschedulable")
    assert f"Insufficient {GPU}" in message
    assert "ask for less in trainer.resourcesPerNode" in message


def warnings_about_pods(namespace: Namespace) -> list[str]:
    """What the Job controller was refused."""
    return [event["message"] for event in namespace.list("events") if event["reason"] == "FailedCreate"]


def test_of_two_jobs_at_the_edge_of_a_quota_one_has_all_its_pods_and_the_other_follows(namespace: Namespace) -> None:
    quota(namespace, pods="3")
    jobs = [TrainingJob(namespace, a_job(name, LACKING)) for name in ("one", "two")]

    def settled() -> list[TrainingJob] | None:
        waiting, going = sorted(jobs, key=lambda job: len(job.pods))
        is_waiting = (waiting.status.get("phase"), reason_of(waiting)) == ("Pending", "QuotaExceeded")
        return [waiting, going] if is_waiting and (len(waiting.pods), len(going.pods)) == (0, 2) else None

    waiting, going = kube.wait_until(f"all or nothing: {[job.status for job in jobs]}", settled, 180)
    namespace.kubectl("delete", "dstj", going.name)
    kube.wait_until(f"{waiting.name} follows: {waiting.status}", lambda: len(waiting.pods) == 2, 120)
    kube.wait_until("its attempt is counted", lambda: waiting.status.get("attempt") == 1)
    assert waiting.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}


def test_half_of_a_job_is_given_back_and_costs_no_attempt(namespace: Namespace) -> None:
    """What a LimitRange adds to pods is not known to the operator: the surest way to half of a job."""
    limits = [{"type": "Container", "defaultRequest": {"ephemeral-storage": "1Gi"}}]
    made = {"apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "defaults"}, "spec": {"limits": limits}}
    namespace.apply(made)
    quota(namespace, **{"requests.ephemeral-storage": "1Gi"})
    job = TrainingJob(namespace, a_job("half", LACKING))
    first = kube.wait_until("the worker job", lambda: namespace.get("job", "half-a1"), 60)["metadata"]["uid"]
    assert "exceeded quota: quota" in told(job, "QuotaExceeded")
    kube.wait_until("it is given back", lambda: uid_of(namespace.get("job", "half-a1")) != first, 120)
    quota(namespace, **{"requests.ephemeral-storage": "2Gi"})
    kube.wait_until(f"all pods: {job.status}", lambda: len(job.pods) == 2, 180)
    assert job.status["attempt"] == 1
    assert job.status["restarts"] == {"job": 0, "inPlace": 0, "disruption": 0}


def uid_of(manifest: kube.Manifest | None) -> str | None:
    return manifest["metadata"]["uid"] if manifest else None


def test_a_quota_of_storage_is_named_too(namespace: Namespace) -> None:
    quota(namespace, persistentvolumeclaims="0")
    job = TrainingJob(namespace, a_job("no-room", LACKING))
    assert "PersistentVolumeClaim dstj-no-room" in told(job, "QuotaExceeded")
    assert namespace.list("pods") == []
    quota(namespace, persistentvolumeclaims="1")
    kube.wait_until("the worker job", lambda: namespace.get("job", "no-room-a1"), 60)


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
    kube.wait_until("the worker job", lambda: namespace.get("job", "kept-a1"), 20)
    namespace.kubectl("delete", "dstj", "kept")
    of_job = ("-n", namespace.name, "-l", "training.dstj.io/job-name=kept")
    kube.wait_until(
        f"only the claim is left: {kube.everything(*of_job)}",
        lambda: kube.everything(*of_job) == {"persistentvolumeclaim/dstj-kept"},
        40,
    )
