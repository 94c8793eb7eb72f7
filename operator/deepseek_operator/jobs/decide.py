"""Decides what to do about one training job.  The functions are pure: they have no client and no clock.

The phase says what was observed, not what the plan is about to cause.  In PENDING and RESTARTING, the worker job of the
current attempt has not been seen yet, or was deleted because a quota lacks room.  In every other phase it has been
seen, so that a missing one was deleted by somebody else.
"""

from dataclasses import replace
from datetime import datetime
from typing import Final

from deepseek_operator.jobs import attempts, labels
from deepseek_operator.jobs.backoff import unpaused
from deepseek_operator.jobs.facts import Facts
from deepseek_operator.jobs.failure import failure_of, job_condition
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.outcome import JobPlan, Outcome, plan_with, running_seconds
from deepseek_operator.jobs.plans import gave_up, next_attempt, planned, stop, succeeded, suspended
from deepseek_operator.jobs.progress import last_words, with_progress
from deepseek_operator.jobs.retry import attempt_failed, lost, pause
from deepseek_operator.jobs.status import Phase
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.jobs.withdrawal import withdrawal
from deepseek_operator.jobs.workers import first_failure, outlived
from deepseek_operator.objects.blockers import QUOTA_EXCEEDED
from deepseek_operator.objects.observed import Manifest
from deepseek_operator.objects.plan import Cause, Plan, Refusal
from deepseek_operator.objects.pods import has_machine
from deepseek_operator.objects.quota import Shortage, spread
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.foreign import named

NAMESAKE_LEAVING: Final = "NamesakeLeaving"
_NOT_SEEN_YET: Final = frozenset({None, Phase.PENDING, Phase.RESTARTING})
NAME_TAKEN: Final = "NameTaken"
_KEPT_CLAIM_FIX: Final = (
    "an earlier job of this name left the claim: let its storage class expand volumes (allowVolumeExpansion), or "
    "delete this job and apply it again with that job's checkpoint.volume, or with a checkpoint.volume.claimName"
)
_SUSPENSION: Final = frozenset({Phase.SUSPENDING, Phase.SUSPENDED})


def decide(job: TrainingJob, observed: Observed, settings: Settings, now: datetime) -> JobPlan:
    """Plan a pass over a job that has a valid spec and is not finished."""
    progress = observed.progress or last_words((*observed.pods, *observed.departed), job.status.attempt)
    status = with_progress(job.status, progress, settings.progress_interval_s, now)
    facts = Facts(job, observed, settings, now, status)
    return _ended(facts) or _held(facts) or _carry_on(facts)


def invalid(job: TrainingJob, now: datetime) -> JobPlan:
    """Plan a pass over a job whose spec breaks a rule.  It says so, changes nothing, and waits for another spec."""
    phase = job.status.phase if job.status.attempt and job.status.phase else Phase.FAILED
    outcome = Outcome(phase, "InvalidSpec", "; ".join(job.problems), is_warning=True, accepted=False)
    return plan_with(outcome, job, job.status, now)


def refused(job: TrainingJob, plan: JobPlan, refusal: Refusal, settings: Settings, now: datetime) -> JobPlan:
    """Plan again after an object of `plan` could not be made or changed.  The pass says so and is tried again later."""
    phase = plan.status.phase or Phase.PENDING
    if refusal.cause is Cause.LEAVING:
        outcome, retry = Outcome(phase, NAMESAKE_LEAVING, refusal.message), settings.namesake_retry_s
    else:
        outcome, retry = Outcome(phase, *_refusal(refusal), is_warning=True), settings.refused_retry_s
    return replace(plan_with(outcome, job, plan.status, now), look_again=retry)


def _refusal(refusal: Refusal) -> tuple[str, str]:
    """The reason and the message of a refusal that lasts until somebody acts."""
    if refusal.cause is Cause.TAKEN:
        return NAME_TAKEN, refusal.message
    if refusal.cause is Cause.CHANGE_REFUSED and refusal.message.startswith("PersistentVolumeClaim "):
        return "ClaimUnchangeable", f"{refusal.message}: {_KEPT_CLAIM_FIX}"
    return QUOTA_EXCEEDED if "exceeded quota" in refusal.message else "Refused", refusal.message


def failing(job: TrainingJob, error: str, now: datetime) -> JobPlan:
    """Plan a report that every pass over the job ends with `error`.  The next pass that does not takes it back."""
    if job.status.is_finished:
        return Plan(job.status)
    message = f"the operator tries again and again to look after this job, and fails: {error}"
    outcome = Outcome(job.status.phase or Phase.PENDING, "PassFailed", message, is_warning=True)
    return plan_with(outcome, job, job.status, now)


def _ended(facts: Facts) -> JobPlan | None:
    """Plan for an attempt that ended, or for a job whose time is up.  None: neither is the case."""
    if facts.have_trained:
        return succeeded(facts)
    if facts.worker_job and facts.has_failed:
        failure = failure_of(facts.worker_job, facts.pods)
        return attempt_failed(facts, replace(failure, placed=facts.ran_since is not None))
    if facts.seconds_left is not None and facts.seconds_left <= 0:
        return _out_of_time(facts)
    return None


def _held(facts: Facts) -> JobPlan | None:
    """Plan for a job that is suspended, or was until now.  None: neither is the case."""
    if facts.job.spec.suspend:
        return suspended(facts, facts.status)
    if facts.status.phase in _SUSPENSION:
        message = f"continuing with attempt {facts.attempt + 1}"
        return next_attempt(facts, unpaused(facts.status), Outcome(Phase.PENDING, "Resuming", message))
    return None


def _carry_on(facts: Facts) -> JobPlan:
    if facts.worker_job is not None:
        return _watch(facts, facts.worker_job)
    return _start(facts) if facts.attempt == 0 or facts.status.phase in _NOT_SEEN_YET else lost(facts)


def _out_of_time(facts: Facts) -> JobPlan:
    """Stop the pods.  The job fails when they are gone."""
    reason, limit = "DeadlineExceeded", facts.job.spec.run_policy.active_deadline_seconds
    message = f"ran for {running_seconds(facts.status, facts.now)} s; runPolicy.activeDeadlineSeconds is {limit}"
    if not facts.has_workers:
        return gave_up(facts, attempts.stopped(facts.status, reason, facts.now), reason, message)
    phase = facts.status.phase or Phase.PENDING
    return stop(facts, Outcome(phase, reason, f"stopping: {message}", is_warning=True))


def _start(facts: Facts) -> JobPlan:
    phase = Phase.RESTARTING if facts.status.phase is Phase.RESTARTING else Phase.PENDING
    if facts.profile_problem:
        outcome = Outcome(phase, *facts.profile_problem, is_warning=True, accepted=False)
        # No watch reports a change of a profile.
        return planned(facts, outcome, look_again=facts.settings.refused_retry_s)
    if left := facts.observed.leftovers:
        message = f"waiting for what an earlier job of this name left: {', '.join(left)}{facts.settings.lost_fix}"
        outcome = Outcome(phase, NAMESAKE_LEAVING, message)
        return planned(facts, outcome, look_again=facts.settings.progress_interval_s)
    if facts.unfinished_pods:
        # Two attempts must not write to one volume.  Only a person knows that the pods of a dead machine are gone.
        leaving = ", ".join(facts.unfinished_pods)
        message = f"waiting for {facts.settings.worker}s to leave: {leaving}{facts.settings.lost_fix}"
        return stop(facts, Outcome(phase, "PodsLeaving", message))
    if facts.pause_left:
        return pause(facts, phase)
    if shortage := facts.shortage:
        return _no_room(facts, shortage)
    return _create(facts, phase)


def _create(facts: Facts, phase: Phase) -> JobPlan:
    """Create the objects.  The next pass sees them, and reports both what was created and what it found."""
    message = f"creating the {_workers(facts)} of attempt {max(1, facts.attempt)}"
    return planned(
        facts,
        Outcome(phase, "CreatingWorkers", message),
        apply=facts.children,
        delete=facts.older_jobs,
        look_again=facts.settings.first_report_s,
        report=False,
    )


def _no_room(facts: Facts, shortage: Shortage) -> JobPlan:
    """Wait for room in a quota.  Objects of older attempts may use some of it, so they are deleted.

    Those that are kept for their logs count only where a quota counts objects.
    """
    retry = spread(facts.settings.refused_retry_s, facts.job.owner.uid)
    outcome = Outcome(Phase.PENDING, QUOTA_EXCEEDED, str(shortage), is_warning=True)
    delete = facts.all_jobs if shortage.resource.startswith("count/") else facts.older_jobs
    return planned(facts, outcome, delete=delete, look_again=retry)


def _watch(facts: Facts, worker_job: Manifest) -> JobPlan:
    """Plan for a worker job that exists and is not finished."""
    outcome = _going_on(facts, worker_job)
    if plan := withdrawal(facts, outcome):
        return plan
    wait = facts.settings.resync_s if outcome.phase is Phase.QUEUED else _pause_s(facts, worker_job)
    repairs = outcome.is_warning or facts.lost_its_policy
    plan = planned(
        facts,
        outcome,
        apply=facts.supports if repairs else (),
        delete=facts.older_jobs,
        look_again=min(wait, (facts.all_run and facts.seconds_left) or wait),
    )
    return replace(plan, only_watches=not repairs)


def _going_on(facts: Facts, worker_job: Manifest) -> Outcome:
    """The outcome for a worker job that goes on.  It is a warning if a person must act."""
    nodes, desired, workers = facts.status.replica_statuses.nodes, facts.num_nodes, _workers(facts)
    if worker_job.get("spec", {}).get("suspend"):
        return Outcome(Phase.QUEUED, "WaitingForQueue", f"waiting for {_queue(worker_job)}")
    if stopping := _stopping(facts, worker_job):
        return Outcome(Phase.STARTING, "PodsStopping", stopping)
    if nodes.ready + nodes.succeeded >= desired:
        return Outcome(Phase.RUNNING, "AllNodesReady", f"all {workers} are ready")
    if lost := ", ".join(facts.lost_pods):
        message = f"the machine of {lost} no longer answers; the other pods give up in a minute"
        return Outcome(Phase.STARTING, "NodeLost", message, is_warning=True)
    if blocker := facts.blocker:
        return Outcome(Phase.STARTING, blocker.reason, blocker.message, is_warning=True)
    return Outcome(Phase.STARTING, "PodsStarting", f"{nodes.ready} of {workers} are ready")


def _workers(facts: Facts) -> str:
    return f"{facts.num_nodes} {facts.settings.worker}s"


def _queue(worker_job: Manifest) -> str:
    name = worker_job["metadata"].get("labels", {}).get(labels.QUEUE)
    return f"queue {named(name)} to admit it" if name else "whoever suspended the worker job to resume it"


def _stopping(facts: Facts, worker_job: Manifest) -> str:
    """Which pods an attempt waits for that has failed.  Empty: it has not."""
    if job_condition(worker_job, "FailureTarget"):
        left = ", ".join(facts.unfinished_pods)
        return f"a {facts.settings.worker} failed and the others stop: {left}{facts.settings.lost_fix}"
    if first_failure(facts.pods):
        names = ", ".join(pod["metadata"]["name"] for pod in outlived(facts.pods))
        return f"a trainer failed, and containers that others have added to its pod run on: {names}"
    return ""


def _pause_s(facts: Facts, worker_job: Manifest) -> float:
    """The time between two passes over a worker job that goes on.

    Pods without a machine make no progress, and an event reports when they get one.  So passes over such a job become
    rarer with time, and a thousand jobs that wait for GPUs cost little.
    """
    shortest, longest = facts.settings.progress_interval_s, facts.settings.resync_s
    if any(has_machine(pod) for pod in facts.pods):
        return shortest
    made = max(each["metadata"]["creationTimestamp"] for each in facts.pods or (worker_job,))
    age = facts.now - datetime.fromisoformat(made)
    return min(longest, max(shortest, age.total_seconds() / 4))
