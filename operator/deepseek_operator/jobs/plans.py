"""The plans that decisions share: report an outcome, stop the pods, begin the next attempt, end the job."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from deepseek_operator.jobs import attempts
from deepseek_operator.jobs.backoff import unpaused
from deepseek_operator.jobs.facts import Facts
from deepseek_operator.jobs.outcome import JobPlan, Outcome, clocked, plan_with
from deepseek_operator.jobs.status import JobStatus, NodeCounts, Phase, ReplicaStatuses
from deepseek_operator.objects.observed import Manifest, Ref
from deepseek_trainer.contract.findings import FindingType, is_notable
from deepseek_trainer.contract.times import rfc3339

_WITH_PODS: Final = frozenset({Phase.STARTING, Phase.RUNNING})


def planned(
    facts: Facts,
    outcome: Outcome,
    *,
    status: JobStatus | None = None,
    apply: tuple[Manifest, ...] = (),
    delete: tuple[Ref, ...] = (),
    look_again: float | None = None,
    report: bool = True,
) -> JobPlan:
    known = replace(outcome, isolation=facts.isolation)
    ticks = outcome.phase in _WITH_PODS and facts.all_run
    plan = plan_with(known, facts.job, clocked(status or facts.status, facts.now, all_run=ticks), facts.now)
    return replace(plan, apply=apply, delete=delete, look_again=look_again, report=report)


def stop(facts: Facts, outcome: Outcome, *, status: JobStatus | None = None) -> JobPlan:
    """Delete the worker jobs, but those that are kept for their logs, and wait for their pods to leave.

    No watch reports the end of a pod that was never scheduled, so the next pass comes soon.
    """
    return planned(facts, outcome, status=status, delete=facts.live_jobs, look_again=facts.settings.progress_interval_s)


def suspended(facts: Facts, status: JobStatus) -> JobPlan:
    """Delete the worker job.  Its pods get SIGTERM, write a checkpoint and leave."""
    status = attempts.stopped(status, "SuspendRequested", facts.now)
    if facts.has_workers:
        workers = f"{len(facts.unfinished_pods)} {facts.settings.worker}s"
        message = f"waiting for {workers} to write a checkpoint and leave"
        return stop(facts, Outcome(Phase.SUSPENDING, "PodsLeaving", message), status=status)
    message = f"there are no {facts.settings.worker}s; {facts.settings.resume_fix}"
    return planned(facts, Outcome(Phase.SUSPENDED, "SuspendRequested", message), status=status)


def next_attempt(facts: Facts, status: JobStatus, outcome: Outcome) -> JobPlan:
    """Raise the counter and look again at once.  The next pass acts on the counter."""
    none = ReplicaStatuses(nodes=NodeCounts(desired=facts.num_nodes))
    status = status.model_copy(update={"attempt": facts.attempt + 1, "replica_statuses": none})
    return planned(facts, outcome, status=status, look_again=0.0)


def succeeded(facts: Facts) -> JobPlan:
    status = attempts.completed(facts.status, facts.ran_since, facts.now)
    status = unpaused(status).model_copy(update={"completion_time": facts.now, "excluded_nodes": ()})
    outcome = Outcome(Phase.SUCCEEDED, "Completed", "; ".join(["trained, evaluated and exported", *_notable(status)]))
    return planned(facts, outcome, status=status, delete=facts.older_jobs, look_again=0.0)


def _notable(status: JobStatus) -> Iterator[str]:
    """What the run found out about itself that a person should hear of unasked."""
    for type_ in FindingType:
        if (found := status.condition(type_)) and is_notable(type_, found.status):
            yield found.message


def gave_up(facts: Facts, status: JobStatus, reason: str, message: str) -> JobPlan:
    """Fail the job.  The worker job of the last attempt stays, so that the logs of its pods can be read."""
    status = status.model_copy(update={"completion_time": facts.now, "next_attempt_time": None})
    outcome = Outcome(Phase.FAILED, reason, message, is_warning=True)
    return planned(facts, outcome, status=status, delete=facts.older_jobs, look_again=0.0)


def next_time(status: JobStatus) -> str:
    return rfc3339(status.next_attempt_time) if status.next_attempt_time else "once"
