"""What follows the end of an attempt that failed: another one after a pause, or the end of the job.

A counter rises in one pass, and a later pass acts on it.  So a crash in between repeats nothing and forgets nothing.
"""

from dataclasses import asdict, replace
from datetime import datetime
from typing import Any, Final

from deepseek_operator.jobs import attempts
from deepseek_operator.jobs.backoff import paused
from deepseek_operator.jobs.exclusion import with_excluded
from deepseek_operator.jobs.facts import Facts
from deepseek_operator.jobs.failure import AttemptFailure, Verdict, rejections
from deepseek_operator.jobs.outcome import JobPlan, Outcome
from deepseek_operator.jobs.plans import gave_up, next_attempt, next_time, planned, suspended
from deepseek_operator.jobs.status import ConditionType, JobStatus, LastFailure, Phase, Restarts

MAX_FAILURE_MESSAGE: Final = 4096  # [characters], as many as a kubelet keeps of a termination message
_BEFORE_PAUSES: Final = frozenset({"AttemptFailed", "NotPlaced", "WorkerJobDeleted"})


def attempt_failed(facts: Facts, failure: AttemptFailure) -> JobPlan:
    status = _after(facts, failure, facts.ran_since)
    if failure.verdict is Verdict.GIVE_UP:
        return gave_up(facts, status, "NotRetryable", f"{failure}; a retry cannot help")
    if facts.job.spec.suspend:
        return suspended(facts, status)
    status = with_excluded(status, failure, rejections(facts.pods), facts.now)
    reason = "NotPlaced" if failure.verdict is Verdict.NOT_PLACED else "AttemptFailed"
    return _restart(facts, status, reason, failure)


def _after(facts: Facts, failure: AttemptFailure, ran: datetime | None) -> JobStatus:
    """The status after an attempt that ended by `failure`.  What nobody saw may have trained."""
    status = facts.status
    started = status.start_time or (None if facts.pods else facts.now)
    status = status.model_copy(update={"last_failure": _last_failure(facts, failure), "start_time": started})
    return attempts.failed(status, failure, ran, facts.now)


def lost(facts: Facts) -> JobPlan:
    deleted = f"somebody deleted the worker job of attempt {facts.attempt}"
    failure = AttemptFailure("WorkerJobDeleted", deleted, disrupted=True, placed=facts.ran_since is not None)
    return _restart(facts, _after(facts, failure, facts.ran_since), failure.reason, failure)


def _restart(facts: Facts, status: JobStatus, reason: str, failure: AttemptFailure) -> JobPlan:
    """Begin the next attempt after a pause, unless all that the run policy allows are used."""
    policy, used, verdict = facts.job.spec.run_policy, status.restarts, failure.verdict
    if verdict is Verdict.RETRY and used.job >= policy.max_restarts:
        message = f"{failure}; all {used.job} restarts of runPolicy.maxRestarts are used"
        return gave_up(facts, status, "RestartBudgetExhausted", message)
    if verdict is Verdict.RETRY_FREE and used.disruption >= policy.max_disruptions:
        message = f"{failure}; all {used.disruption} restarts of runPolicy.maxDisruptions are used"
        return gave_up(facts, status, "DisruptionBudgetExhausted", message)
    status = paused(status, facts.settings, facts.now).model_copy(update=_counted(status, verdict))
    message = f"attempt {facts.attempt + 1} begins at {next_time(status)}: {failure}"
    return next_attempt(facts, status, Outcome(Phase.RESTARTING, reason, message, is_warning=True))


def _counted(status: JobStatus, verdict: Verdict) -> dict[str, Any]:
    """The counters of the status after an attempt that ended with `verdict`."""
    job, disruption = status.restarts.job, status.restarts.disruption
    job, disruption = job + (verdict is Verdict.RETRY), disruption + (verdict is Verdict.RETRY_FREE)
    not_placed = status.not_placed + (verdict is Verdict.NOT_PLACED)
    return {"restarts": Restarts(job=job, disruption=disruption), "not_placed": not_placed}


def pause(facts: Facts, phase: Phase) -> JobPlan:
    """Wait for the time that the status names.  What led to the pause stays to be read."""
    running = facts.job.status.condition(ConditionType.RUNNING)
    outcome = Outcome(phase, "BackOff", f"attempt {facts.attempt} begins at {next_time(facts.status)}")
    if running and running.reason in _BEFORE_PAUSES:
        outcome = replace(outcome, reason=running.reason, message=facts.job.status.message, is_warning=True)
    return planned(facts, outcome, delete=facts.older_jobs, look_again=facts.pause_left)


def _last_failure(facts: Facts, failure: AttemptFailure) -> LastFailure:
    known = asdict(failure) | {"attempt": facts.attempt, "time": facts.now}
    cut = {"reason": failure.reason[:256], "message": failure.message[-MAX_FAILURE_MESSAGE:]}
    return LastFailure.model_validate(known | cut)
