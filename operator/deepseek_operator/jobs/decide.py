"""Decides what to do about one training job.  The functions are pure: they have no client and no clock.

The phase says what was observed, not what the plan is about to cause.  In PENDING and RESTARTING, the worker job of the
current attempt has not been seen yet, or was deleted because a quota lacks room.  In every other phase it has been
seen, so that a missing one was deleted by somebody else.

A counter rises in one pass, and a later pass acts on it.  So a crash in between repeats nothing and forgets nothing.
"""

from dataclasses import asdict, replace
from datetime import datetime, timedelta
from typing import Final

from deepseek_operator.api.names import API_VERSION, KIND
from deepseek_operator.jobs.facts import Facts
from deepseek_operator.jobs.failure import AttemptFailure, Verdict, failure_of, job_condition
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.outcome import JobPlan, Outcome, plan_with, running_seconds
from deepseek_operator.jobs.progress import last_words, with_progress
from deepseek_operator.jobs.status import JobStatus, LastFailure, Phase
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.objects.blockers import QUOTA_EXCEEDED
from deepseek_operator.objects.observed import Manifest, Ref
from deepseek_operator.objects.plan import Cause, Plan, Refusal
from deepseek_operator.objects.quota import spread
from deepseek_operator.settings import Settings

NAMESAKE_LEAVING: Final = "NamesakeLeaving"
MAX_FAILURE_MESSAGE: Final = 4096  # [characters], as many as a kubelet keeps of a termination message
_NOT_SEEN_YET: Final = frozenset({None, Phase.PENDING, Phase.RESTARTING})
_LOST_FIX: Final = "; if their machine is gone, use `kubectl delete pod --force`"
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


def finished(job: TrainingJob, now: datetime) -> JobPlan:
    """Plan a pass over a job that succeeded or failed.  It is deleted when its time has come."""
    status = job.status.model_copy(update={"observed_generation": job.generation})
    if job.ttl_s is None or status.completion_time is None:
        return Plan(status)
    left = (status.completion_time + timedelta(seconds=job.ttl_s) - now).total_seconds()
    if left > 0:
        return Plan(status, look_again=left)
    return Plan(status, delete=(Ref(API_VERSION, KIND, job.owner.namespace, job.owner.name, job.owner.uid),))


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
    if facts.worker_job and job_condition(facts.worker_job, "Complete"):
        return _succeeded(facts)
    if facts.worker_job and _has_failed(facts, facts.worker_job):
        return _attempt_failed(facts, failure_of(facts.worker_job, facts.pods))
    if facts.seconds_left is not None and facts.seconds_left <= 0:
        return _out_of_time(facts)
    return None


def _succeeded(facts: Facts) -> JobPlan:
    status = facts.status.model_copy(update={"completion_time": facts.now})
    outcome = Outcome(Phase.SUCCEEDED, "Completed", "trained, evaluated and exported")
    return _plan(facts, outcome, status=status, delete=facts.older_jobs, look_again=0.0)


def _has_failed(facts: Facts, worker_job: Manifest) -> bool:
    """Whether the attempt failed.

    A Job that is bound to fail waits for all of its pods, even for those of a machine that will never answer again.
    Here it has failed once none of its pods can write.
    """
    is_doomed = job_condition(worker_job, "FailureTarget") is not None and bool(facts.pods)
    return job_condition(worker_job, "Failed") is not None or (is_doomed and not facts.unfinished_pods)


def _held(facts: Facts) -> JobPlan | None:
    """Plan for a job that is suspended, or was until now.  None: neither is the case."""
    if facts.job.spec.suspend:
        return _suspended(facts, facts.status)
    if facts.status.phase in _SUSPENSION:
        message = f"continuing with attempt {facts.attempt + 1}"
        return _next_attempt(facts, facts.status, Outcome(Phase.PENDING, "Resuming", message))
    return None


def _carry_on(facts: Facts) -> JobPlan:
    if facts.worker_job is not None:
        return _watch(facts, facts.worker_job)
    return _start(facts) if facts.attempt == 0 or facts.status.phase in _NOT_SEEN_YET else _lost(facts)


def _attempt_failed(facts: Facts, failure: AttemptFailure) -> JobPlan:
    status = facts.status.model_copy(update={"last_failure": _last_failure(facts, failure)})
    if failure.verdict is Verdict.GIVE_UP:
        return _gave_up(facts, status, "NotRetryable", f"{failure}; a retry cannot help")
    if facts.job.spec.suspend:
        return _suspended(facts, status)
    used = status.restarts.job
    if failure.verdict is Verdict.RETRY and used >= facts.job.spec.run_policy.max_restarts:
        message = f"{failure}; all {used} restarts of runPolicy.maxRestarts are used"
        return _gave_up(facts, status, "RestartBudgetExhausted", message)
    return _restart(facts, status, "AttemptFailed", str(failure), is_free=failure.verdict is Verdict.RETRY_FREE)


def _lost(facts: Facts) -> JobPlan:
    failure = AttemptFailure("WorkerJobDeleted", f"somebody deleted the worker job of attempt {facts.attempt}")
    status = facts.status.model_copy(update={"last_failure": _last_failure(facts, failure)})
    return _restart(facts, status, failure.reason, failure.message, is_free=True)


def _restart(facts: Facts, status: JobStatus, reason: str, cause: str, *, is_free: bool) -> JobPlan:
    counter = "disruption" if is_free else "job"
    restarts = status.restarts
    restarts = restarts.model_copy(update={counter: getattr(restarts, counter) + 1, "in_place": 0})
    status = status.model_copy(update={"restarts": restarts})
    message = f"attempt {facts.attempt + 1} follows: {cause}"
    return _next_attempt(facts, status, Outcome(Phase.RESTARTING, reason, message, is_warning=True))


def _next_attempt(facts: Facts, status: JobStatus, outcome: Outcome) -> JobPlan:
    """Raise the counter and look again at once.  The next pass acts on the counter."""
    status = status.model_copy(update={"attempt": facts.attempt + 1})
    return _plan(facts, outcome, status=status, look_again=0.0)


def _gave_up(facts: Facts, status: JobStatus, reason: str, message: str) -> JobPlan:
    """Fail the job.  The worker job of the last attempt stays, so that the logs of its pods can be read."""
    status = status.model_copy(update={"completion_time": facts.now})
    outcome = Outcome(Phase.FAILED, reason, message, is_warning=True)
    return _plan(facts, outcome, status=status, delete=facts.older_jobs, look_again=0.0)


def _out_of_time(facts: Facts) -> JobPlan:
    """Stop the pods.  The job fails when they are gone."""
    reason, limit = "DeadlineExceeded", facts.job.spec.run_policy.active_deadline_seconds
    message = f"ran for {running_seconds(facts.status, facts.now)} s; runPolicy.activeDeadlineSeconds is {limit}"
    if not facts.has_workers:
        return _gave_up(facts, facts.status, reason, message)
    phase = facts.status.phase or Phase.PENDING
    return _stop(facts, Outcome(phase, reason, f"stopping: {message}", is_warning=True))


def _suspended(facts: Facts, status: JobStatus) -> JobPlan:
    """Delete the worker job.  Its pods get SIGTERM, write a checkpoint and leave."""
    if facts.has_workers:
        message = f"waiting for {len(facts.unfinished_pods)} pods to write a checkpoint and leave"
        return _stop(facts, Outcome(Phase.SUSPENDING, "PodsLeaving", message), status=status)
    message = "there are no pods; set suspend: false to continue from the last checkpoint"
    return _plan(facts, Outcome(Phase.SUSPENDED, "SuspendRequested", message), status=status)


def _start(facts: Facts) -> JobPlan:
    phase = Phase.RESTARTING if facts.status.phase is Phase.RESTARTING else Phase.PENDING
    if facts.profile_problem:
        outcome = Outcome(phase, *facts.profile_problem, is_warning=True, accepted=False)
        # No watch reports a change of a profile.
        return _plan(facts, outcome, look_again=facts.settings.refused_retry_s)
    if left := facts.observed.leftovers:
        message = f"waiting for what an earlier job of this name left: {', '.join(left)}{_LOST_FIX}"
        outcome = Outcome(phase, NAMESAKE_LEAVING, message)
        return _plan(facts, outcome, look_again=facts.settings.progress_interval_s)
    if facts.unfinished_pods:
        # Two attempts must not write to one volume.  Only a person knows that the pods of a dead machine are gone.
        message = f"waiting for pods to leave: {', '.join(facts.unfinished_pods)}{_LOST_FIX}"
        return _stop(facts, Outcome(phase, "PodsLeaving", message))
    if shortage := facts.shortage:
        return _no_room(facts, str(shortage))
    return _create(facts, phase)


def _create(facts: Facts, phase: Phase) -> JobPlan:
    """Create the objects.  The next pass sees them, and reports both what was created and what it found."""
    message = f"creating the {facts.num_nodes} pods of attempt {max(1, facts.attempt)}"
    return _plan(
        facts,
        Outcome(phase, "CreatingWorkers", message),
        apply=facts.children,
        delete=facts.older_jobs,
        look_again=facts.settings.progress_interval_s,
        report=False,
    )


def _no_room(facts: Facts, message: str) -> JobPlan:
    """Wait for room in a quota.  Objects of older attempts may use some of it, so they are deleted.

    The phase is PENDING after a failure, too, because time spent waiting for room is no running time.
    """
    retry = spread(facts.settings.refused_retry_s, facts.job.owner.uid)
    outcome = Outcome(Phase.PENDING, QUOTA_EXCEEDED, message, is_warning=True)
    return _plan(facts, outcome, delete=facts.older_jobs, look_again=retry)


def _watch(facts: Facts, worker_job: Manifest) -> JobPlan:
    """Plan for a worker job that exists and is not finished."""
    outcome = _going_on(facts, worker_job)
    if outcome.reason == QUOTA_EXCEEDED and facts.has_waited_with_half:
        return _give_back(facts, outcome.message)
    wait = facts.settings.resync_s if outcome.phase is Phase.QUEUED else facts.pause_s
    return _plan(
        facts,
        outcome,
        apply=facts.supports if outcome.is_warning or facts.lost_its_policy else (),
        delete=facts.older_jobs,
        look_again=min(wait, facts.seconds_left or wait),
    )


def _give_back(facts: Facts, cause: str) -> JobPlan:
    """Delete pods that cannot train because a quota admitted only some of them.  No restart is counted.

    The same happens if a pod was lost and the quota does not admit another one.  The phase becomes PENDING in a pass of
    its own, so that a later pass does not take the missing worker job for one that somebody deleted.
    """
    message = f"deleting {len(facts.pods)} of {facts.num_nodes} pods, because a quota has no room for all: {cause}"
    outcome = Outcome(Phase.PENDING, QUOTA_EXCEEDED, message, is_warning=True)
    if (facts.job.status.phase, facts.job.status.attempt) != (Phase.PENDING, facts.attempt):
        return _plan(facts, outcome, look_again=0.0)
    return _stop(facts, outcome)


def _going_on(facts: Facts, worker_job: Manifest) -> Outcome:
    """The outcome for a worker job that goes on.  It is a warning if a person must act."""
    nodes, desired = facts.status.replica_statuses.nodes, facts.num_nodes
    if worker_job.get("spec", {}).get("suspend"):
        return Outcome(Phase.QUEUED, "WaitingForQueue", f"waiting for {facts.queue}")
    if job_condition(worker_job, "FailureTarget"):
        names = ", ".join(facts.unfinished_pods)
        return Outcome(Phase.STARTING, "PodsStopping", f"a pod failed and the others stop: {names}{_LOST_FIX}")
    if nodes.ready + nodes.succeeded >= desired:
        return Outcome(Phase.RUNNING, "AllNodesReady", f"all {desired} pods are ready")
    if lost := ", ".join(facts.lost_pods):
        message = f"the machine of {lost} no longer answers; the other pods give up in a minute"
        return Outcome(Phase.STARTING, "NodeLost", message, is_warning=True)
    if blocker := facts.blocker:
        return Outcome(Phase.STARTING, blocker.reason, blocker.message, is_warning=True)
    return Outcome(Phase.STARTING, "PodsStarting", f"{nodes.ready} of {desired} pods are ready")


def _stop(facts: Facts, outcome: Outcome, *, status: JobStatus | None = None) -> JobPlan:
    """Delete the worker jobs and wait for their pods to leave.

    No watch reports the end of a pod that was never scheduled, so the next pass comes soon.
    """
    return _plan(facts, outcome, status=status, delete=facts.all_jobs, look_again=facts.settings.progress_interval_s)


def _plan(
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
    plan = plan_with(known, facts.job, status or facts.status, facts.now)
    return replace(plan, apply=apply, delete=delete, look_again=look_again, report=report)


def _last_failure(facts: Facts, failure: AttemptFailure) -> LastFailure:
    known = asdict(failure) | {"attempt": facts.attempt, "time": facts.now}
    cut = {"reason": failure.reason[:256], "message": failure.message[-MAX_FAILURE_MESSAGE:]}
    return LastFailure.model_validate(known | cut)
