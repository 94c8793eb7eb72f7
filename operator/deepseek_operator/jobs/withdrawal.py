"""Taking back the worker job of an attempt, to make it anew later under the same number.  No restart is counted."""

from datetime import datetime

from deepseek_operator.jobs import labels
from deepseek_operator.jobs.backoff import doubling, paused
from deepseek_operator.jobs.facts import Facts
from deepseek_operator.jobs.outcome import JobPlan, Outcome
from deepseek_operator.jobs.plans import next_time, planned, stop
from deepseek_operator.jobs.status import JobStatus, Phase
from deepseek_operator.objects.blockers import NO_PRIORITY_CLASS, QUOTA_EXCEEDED
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.pods import has_machine, is_finished
from deepseek_operator.objects.quota import spread


def withdrawal(facts: Facts, outcome: Outcome) -> JobPlan | None:
    """Plan to take back the worker job of the current attempt.  None: it goes on with `outcome`."""
    assert facts.worker_job is not None
    if not facts.pods and (_is_in_another_queue(facts, facts.worker_job) or _lacks_priority(facts, outcome)):
        return _make_anew(facts)
    if outcome.reason == QUOTA_EXCEEDED and _has_waited_with_half(facts, facts.worker_job):
        return _give_back(facts, outcome.message)
    if _is_giving_back(facts) or _has_waited_in_part(facts, facts.worker_job):
        return _give_back_machines(facts, outcome.message)
    return None


def _is_in_another_queue(facts: Facts, worker_job: Manifest) -> bool:
    """Whether the worker job waits in another queue than the job names by now.

    Labels that the job does not have may come from somebody else, such as Kueue's default queue.
    """
    has, wanted = worker_job["metadata"].get("labels", {}), labels.of_queue(facts.job.labels)
    return any(has.get(label) != value for label, value in wanted.items())


def _lacks_priority(facts: Facts, outcome: Outcome) -> bool:
    """Whether the pods are refused for a PriorityClass that the job names no longer."""
    assert facts.worker_job is not None
    pod = facts.worker_job["spec"].get("template", {}).get("spec", {})  # the list of a start leaves it out
    has_changed = pod.get("priorityClassName") != facts.job.spec.scheduling.priority_class_name
    return outcome.reason == NO_PRIORITY_CLASS and bool(pod) and has_changed


def _has_waited_with_half(facts: Facts, worker_job: Manifest) -> bool:
    """Whether only some pods of the attempt exist, and have existed long enough to delete them again.

    A job in a queue is left to the queue.  The time depends on the uid of the worker job.  So of two jobs that each
    hold half of their pods, one lets go first, and the other gets its missing pods.
    """
    if labels.QUEUE in facts.job.labels or not 0 < len(facts.pods) < facts.num_nodes:
        return False
    meta = worker_job["metadata"]
    age = facts.now - datetime.fromisoformat(meta["creationTimestamp"])
    return age.total_seconds() >= spread(facts.settings.refused_retry_s, meta["uid"])


def _has_waited_in_part(facts: Facts, worker_job: Manifest) -> bool:
    """Whether some pods hold machines, and others have waited for theirs long enough to give those back.

    The time grows with the pauses before the next try, and depends on the uid of the worker job.  So of two jobs that
    each hold a part of the machines, one lets go first, and the other gets its missing ones.  Where nodes are excluded,
    a job that gets no machine at all gives up waiting, too: the next try may use them again.
    """
    unfinished = [pod for pod in facts.pods if not is_finished(pod) and "deletionTimestamp" not in pod["metadata"]]
    waiting = [pod["metadata"]["creationTimestamp"] for pod in unfinished if not has_machine(pod)]
    if not waiting or (len(waiting) == len(unfinished) and not facts.status.excluded_nodes):
        return False
    first, longest = facts.settings.placement_wait_s, facts.settings.longest_placement_wait_s
    wait = spread(doubling(first, longest, facts.status.back_offs), worker_job["metadata"]["uid"])
    return (facts.now - datetime.fromisoformat(min(waiting))).total_seconds() >= wait


def _is_giving_back(facts: Facts) -> bool:
    """Whether an earlier pass has decided to give machines back until a time that has not come."""
    return facts.job.status.phase is Phase.PENDING and facts.pause_left > 0


def _give_back(facts: Facts, cause: str) -> JobPlan:
    """Delete pods that cannot train because a quota admitted only some of them.  No restart is counted.

    The same happens if a pod was lost and the quota does not admit another one.
    """
    message = f"deleting {len(facts.pods)} of {facts.num_nodes} pods, because a quota has no room for all: {cause}"
    return _withdraw(facts, Outcome(Phase.PENDING, QUOTA_EXCEEDED, message, is_warning=True), facts.status)


def _make_anew(facts: Facts) -> JobPlan:
    """Delete a worker job that has no pods yet, so that the next pass makes one with the queue and priority of now."""
    message = "the queue or the priority of the job has changed, so its worker job is made anew"
    return _withdraw(facts, Outcome(Phase.PENDING, "WorkerJobOutdated", message), facts.status)


def _give_back_machines(facts: Facts, cause: str) -> JobPlan:
    """Delete pods that hold machines and cannot train, because other pods of their attempt have none.

    No restart is counted.  The next try may use all nodes again, since those that are left were too few.
    """
    if _is_giving_back(facts):
        outcome = Outcome(Phase.PENDING, "NotPlaced", facts.job.status.message, is_warning=True)
        return _withdraw(facts, outcome, facts.status)
    update = {"not_placed": facts.status.not_placed + 1, "excluded_nodes": ()}
    status = paused(facts.status, facts.settings, facts.now).model_copy(update=update)
    message = (
        f"deleting {len(facts.pods)} of {facts.num_nodes} pods, because there are not enough machines for all; "
        f"the next try is at {next_time(status)}: {cause}"
    )
    return _withdraw(facts, Outcome(Phase.PENDING, "NotPlaced", message, is_warning=True), status)


def _withdraw(facts: Facts, outcome: Outcome, status: JobStatus) -> JobPlan:
    """Delete the worker job of the current attempt, which is made anew later.

    The phase becomes PENDING in a pass of its own, so that a later pass does not take the missing worker job for one
    that somebody deleted.
    """
    if (facts.job.status.phase, facts.job.status.attempt) != (Phase.PENDING, facts.attempt):
        return planned(facts, outcome, status=status, look_again=0.0)
    return stop(facts, outcome, status=status)
