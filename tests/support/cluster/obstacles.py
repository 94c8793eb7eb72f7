"""What keeps a job from starting, and that it goes on by itself once that is gone."""

from support.cluster.kube import TrainingJob, wait_until

LACKING = {"trainer": {"image": None, "profile": "cpu"}, "data": {"train": {"claimName": "nobody-makes-it"}}}
NO_IMAGE = "localhost/no-such-trainer@sha256:" + "0" * 64
UNDER_WAY = {"PodsStarting", "AllNodesReady"}


def reason_of(job: TrainingJob) -> str:
    return str((job.condition("Running") or {}).get("reason"))


def told(job: TrainingJob, *reasons: str, timeout_s: float = 60) -> str:
    """The message of the condition, once it has one of `reasons`; an event says the same."""
    wait_until(f"one of {reasons}: {job.status}", lambda: reason_of(job) in reasons, timeout_s)
    message, reason = job.status["message"], reason_of(job)
    # The operator posts events after it has written the status.
    wait_until(f"an event says of {reason} what the status says", lambda: says(job, message[:200]), 10)
    return str(message)


def says(job: TrainingJob, words: str) -> bool:
    events = job.namespace.list("events")
    return any(words in event["message"] for event in events if event["involvedObject"]["name"] == job.name)


def goes_on(job: TrainingJob, timeout_s: float = 120) -> None:
    wait_until(f"{job.name} goes on: {job.status}", lambda: reason_of(job) in UNDER_WAY, timeout_s)
    assert job.status["attempt"] == 1, "what was missing cost no attempt"


def looks_now(job: TrainingJob) -> None:
    """Let the operator look at a job that it would look at by itself within a minute."""
    job.namespace.kubectl("label", f"dstj/{job.name}", "look=now")
