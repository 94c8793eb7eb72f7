"""What keeps a job from starting: the status and an event name the fix, and the job goes on by itself once it is done.

Only a Secret that is there and lacks the entry of the job ends it.
"""

from support.cluster import kube
from support.cluster.kube import Namespace, TrainingJob, a_job, example
from support.cluster.obstacles import LACKING, NO_IMAGE, goes_on, told


def test_a_missing_secret_is_named_and_its_creation_starts_the_job(namespace: Namespace) -> None:
    namespace.claim("texts", kube.ROOT / "examples" / "texts")
    encryption = {"keyRef": {"secretName": "late-key"}}
    job = TrainingJob(namespace, example("pretrain-tiny", checkpoint={"encryption": encryption}))
    message = told(job, "FailedMount")
    assert 'secret "late-key" not found' in message
    assert "create the missing Secret, ConfigMap or claim; the pods then go on by themselves" in message
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
        kube.wait_until("the worker job", lambda: namespace.get("jobs", "late-a1"), 60)
    finally:
        kube.kubectl("delete", "trainingprofile", name)
