"""What to do about one training job, from what was seen of it.  Pure: no client, no clock.

The phase tells what was observed, not what the plan is about to cause.  In PENDING and RESTARTING
the worker job of the current attempt has not been seen yet, or is given back to a quota; in every
other phase it has been seen, so that a missing one was deleted by somebody.  Counters rise in one
pass and are acted upon in a later one: a crash in between repeats nothing and forgets nothing.
"""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, Final

from deepseek_operator.api.names import API_VERSION, KIND
from deepseek_operator.jobs.facts import Situation
from deepseek_operator.jobs.failure import AttemptFailure, Verdict, failure_of, job_condition
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.outcome import JobPlan, Outcome, running_seconds, told
from deepseek_operator.jobs.progress import last_words, with_progress
from deepseek_operator.jobs.status import JobStatus, LastFailure, Phase
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.objects.blockers import QUOTA_EXCEEDED
from deepseek_operator.objects.observed import Manifest, Ref
from deepseek_operator.objects.plan import Plan
from deepseek_operator.objects.quota import spread
from deepseek_operator.settings import Settings

NAMESAKE_LEAVING: Final = "NamesakeLeaving"
MAX_FAILURE_MESSAGE: Final = 4096  # [characters]; what a kubelet keeps of a termination message
_NOT_SEEN_YET: Final = frozenset({None, Phase.PENDING, Phase.RESTARTING})
_LOST_FIX: Final = "; if their machine is gone, use `kubectl delete pod --force`"
_TWO_CONTROLLERS: Final = 'Found "true" in references for {} and {}'  # how the API server ends its refusal
_SUSPENSION: Final = frozenset({Phase.SUSPENDING, Phase.SUSPENDED})


def decide(job: TrainingJob, observed: Observed, settings: Settings, now: datetime) -> JobPlan:
    """Plan one pass over a job that has a valid spec and is not finished."""
    answer = observed.progress or last_words((*observed.pods, *observed.departed), job.status.attempt)
    status = with_progress(job.status, answer, settings.progress_interval_s, now)
    s = Situation(job, observed, settings, now, status)
    return _ended(s) or _held(s) or _carry_on(s)


def finished(job: TrainingJob, now: datetime) -> JobPlan:
    """Plan one pass over a job that succeeded or failed: nothing changes but that it is deleted in time."""
    status = job.status.model_copy(update={"observed_generation": job.generation})
    if job.ttl_s is None or status.completion_time is None:
        return Plan(status)
    left = (status.completion_time + timedelta(seconds=job.ttl_s) - now).total_seconds()
    if left > 0:
        return Plan(status, look_again=left)
    return Plan(status, delete=(Ref(API_VERSION, KIND, job.owner.namespace, job.owner.name, job.owner.uid),))


def invalid(job: TrainingJob, now: datetime) -> JobPlan:
    """Plan one pass over a job whose spec breaks a rule: say so, touch nothing, wait for another spec."""
    phase = job.status.phase if job.status.attempt and job.status.phase else Phase.FAILED
    outcome = Outcome(phase, "InvalidSpec", "; ".join(job.problems), is_warning=True, accepted=False)
    return told(job, job.status, outcome, now)


def refused(job: TrainingJob, plan: JobPlan, refusal: str, settings: Settings, now: datetime) -> JobPlan:
    """`plan`, after the API server would not have one of its objects: say so, and try again later."""
    phase, name = plan.status.phase or Phase.PENDING, job.owner.name
    if refusal.endswith(_TWO_CONTROLLERS.format(name, name)):
        message = f"{refusal.partition(': ')[0]} still belongs to an earlier job of this name, which is being deleted"
        outcome = Outcome(phase, NAMESAKE_LEAVING, message)
        return told(job, plan.status, outcome, now, look_again=settings.namesake_retry_s)
    reason = QUOTA_EXCEEDED if "exceeded quota" in refusal else "Refused"
    outcome = Outcome(phase, reason, refusal, is_warning=True)
    return told(job, plan.status, outcome, now, look_again=settings.refused_retry_s)


def _ended(s: Situation) -> JobPlan | None:
    """The current attempt finished, or the whole job's time is up."""
    if s.worker_job and job_condition(s.worker_job, "Complete"):
        status = s.status.model_copy(update={"completion_time": s.now})
        done = "trained, evaluated and exported"
        return _tell(s, Phase.SUCCEEDED, "Completed", done, status=status, delete=s.older_jobs, look_again=0.0)
    if s.worker_job and _has_failed(s, s.worker_job):
        return _attempt_failed(s, failure_of(s.worker_job, s.pods))
    if s.seconds_left is not None and s.seconds_left <= 0:
        return _out_of_time(s)
    return None


def _has_failed(s: Situation, worker_job: Manifest) -> bool:
    """A Job that is bound to fail waits for all its pods, also for those of a machine that will never answer."""
    is_doomed = job_condition(worker_job, "FailureTarget") is not None and bool(s.pods)
    return job_condition(worker_job, "Failed") is not None or (is_doomed and not s.unfinished_pods)


def _held(s: Situation) -> JobPlan | None:
    """The job is, or was until now, suspended."""
    if s.job.spec.suspend:
        return _suspended(s, s.status)
    if s.status.phase in _SUSPENSION:
        return _next_attempt(s, s.status, Phase.PENDING, "Resuming", f"continuing with attempt {s.attempt + 1}")
    return None


def _carry_on(s: Situation) -> JobPlan:
    if s.worker_job is not None:
        return _watch(s)
    return _start(s) if s.attempt == 0 or s.status.phase in _NOT_SEEN_YET else _lost(s)


def _attempt_failed(s: Situation, failure: AttemptFailure) -> JobPlan:
    status = s.status.model_copy(update={"last_failure": _last_failure(s, failure)})
    if failure.verdict is Verdict.GIVE_UP:
        return _gave_up(s, status, "NotRetryable", f"{failure}; a retry cannot help")
    if s.job.spec.suspend:
        return _suspended(s, status)
    used = status.restarts.job
    if failure.verdict is Verdict.RETRY and used >= s.job.spec.run_policy.max_restarts:
        message = f"{failure}; all {used} restarts of runPolicy.maxRestarts are used"
        return _gave_up(s, status, "RestartBudgetExhausted", message)
    return _restart(s, status, "AttemptFailed", str(failure), is_free=failure.verdict is Verdict.RETRY_FREE)


def _lost(s: Situation) -> JobPlan:
    failure = AttemptFailure("WorkerJobDeleted", f"somebody deleted the worker job of attempt {s.attempt}")
    status = s.status.model_copy(update={"last_failure": _last_failure(s, failure)})
    return _restart(s, status, failure.reason, failure.message, is_free=True)


def _restart(s: Situation, status: JobStatus, reason: str, cause: str, *, is_free: bool) -> JobPlan:
    counter = "disruption" if is_free else "job"
    restarts = status.restarts
    restarts = restarts.model_copy(update={counter: getattr(restarts, counter) + 1, "in_place": 0})
    status = status.model_copy(update={"restarts": restarts})
    message = f"attempt {s.attempt + 1} follows: {cause}"
    return _next_attempt(s, status, Phase.RESTARTING, reason, message, is_warning=True)


def _next_attempt(
    s: Situation, status: JobStatus, phase: Phase, reason: str, message: str, *, is_warning: bool = False
) -> JobPlan:
    """Raise the counter and look again at once: the pass after this one acts on it."""
    status = status.model_copy(update={"attempt": s.attempt + 1})
    return _tell(s, phase, reason, message, status=status, is_warning=is_warning, look_again=0.0)


def _gave_up(s: Situation, status: JobStatus, reason: str, message: str) -> JobPlan:
    """The job failed.  The worker job of the last attempt stays, for the logs of its pods."""
    status = status.model_copy(update={"completion_time": s.now})
    return _tell(s, Phase.FAILED, reason, message, status=status, is_warning=True, delete=s.older_jobs, look_again=0.0)


def _out_of_time(s: Situation) -> JobPlan:
    """Stop the pods; the job has failed when they are gone."""
    reason, limit = "DeadlineExceeded", s.job.spec.run_policy.active_deadline_seconds
    message = f"ran for {running_seconds(s.status, s.now)} s, runPolicy.activeDeadlineSeconds is {limit}"
    if not s.has_workers:
        return _gave_up(s, s.status, reason, message)
    return _wait(s, s.status.phase or Phase.PENDING, reason, f"stopping: {message}", is_warning=True, delete=s.all_jobs)


def _suspended(s: Situation, status: JobStatus) -> JobPlan:
    """Pods get SIGTERM with their worker job's deletion, write a checkpoint and leave."""
    if s.has_workers:
        message = f"{len(s.unfinished_pods)} pods write a checkpoint and leave"
        return _wait(s, Phase.SUSPENDING, "PodsLeaving", message, status=status, delete=s.all_jobs)
    message = "no pods; set suspend: false to continue from the last checkpoint"
    return _tell(s, Phase.SUSPENDED, "SuspendRequested", message, status=status)


def _start(s: Situation) -> JobPlan:
    phase = Phase.RESTARTING if s.status.phase is Phase.RESTARTING else Phase.PENDING
    if s.profile_problem:
        retry = s.settings.refused_retry_s  # no event tells of a profile
        return _tell(s, phase, *s.profile_problem, is_warning=True, accepted=False, look_again=retry)
    if left := s.observed.leftovers:
        message = f"waiting for what an earlier job of this name left: {', '.join(left)}{_LOST_FIX}"
        return _wait(s, phase, NAMESAKE_LEAVING, message)
    if s.unfinished_pods:
        # Two attempts could both write the volume; of a dead machine only a person knows that its pods are gone.
        names = ", ".join(s.unfinished_pods)
        message = f"waiting for pods to leave: {names}{_LOST_FIX}"
        return _wait(s, phase, "PodsLeaving", message, delete=s.all_jobs)
    if shortage := s.shortage:
        return _no_room(s, str(shortage))
    message = f"creating the {s.num_nodes} pods of attempt {max(1, s.attempt)}"
    return _tell(
        s,
        phase,
        "CreatingWorkers",
        message,
        apply=s.children,
        delete=s.older_jobs,
        look_again=s.settings.progress_interval_s,
        report=False,
    )


def _no_room(s: Situation, message: str) -> JobPlan:
    """PENDING after a failure, too: waiting for room is no running time.  What older attempts left may fill a quota."""
    retry = spread(s.settings.refused_retry_s, s.job.owner.uid)
    return _tell(s, Phase.PENDING, QUOTA_EXCEEDED, message, is_warning=True, delete=s.older_jobs, look_again=retry)


def _watch(s: Situation) -> JobPlan:
    """The worker job is there and not finished."""
    phase, reason, message, is_warning = _seen(s)
    if reason == QUOTA_EXCEEDED and s.has_waited_with_half:
        return _given_back(s, message)
    wait = s.settings.resync_s if phase is Phase.QUEUED else s.pause_s
    return _tell(
        s,
        phase,
        reason,
        message,
        is_warning=is_warning,
        apply=s.supports if is_warning or s.lost_its_policy else (),
        delete=s.older_jobs,
        look_again=min(wait, s.seconds_left or wait),
    )


def _given_back(s: Situation, cause: str) -> JobPlan:
    """A quota let in only some of the pods, which cannot train: they leave, uncounted, until there is room for all.

    So do the others of a pod that was lost and is not let in again.  The phase steps back in a pass of
    its own: with it, a worker job that is missing was not deleted by somebody.
    """
    message = f"giving back {len(s.pods)} of {s.num_nodes} pods: {cause}"
    is_told = (s.job.status.phase, s.job.status.attempt) == (Phase.PENDING, s.attempt)
    gone, wait = (s.all_jobs, s.settings.progress_interval_s) if is_told else ((), 0.0)
    return _tell(s, Phase.PENDING, QUOTA_EXCEEDED, message, is_warning=True, delete=gone, look_again=wait)


def _seen(s: Situation) -> tuple[Phase, str, str, bool]:
    """Phase, reason and message of a worker job that goes on, and whether it needs a person."""
    assert s.worker_job is not None
    nodes, desired = s.status.replica_statuses.nodes, s.num_nodes
    if s.worker_job.get("spec", {}).get("suspend"):
        return Phase.QUEUED, "WaitingForQueue", f"waiting for {s.queue}", False
    if job_condition(s.worker_job, "FailureTarget"):
        names = ", ".join(s.unfinished_pods)
        return Phase.STARTING, "PodsStopping", f"a pod failed, the others stop: {names}{_LOST_FIX}", False
    if nodes.ready + nodes.succeeded >= desired:
        return Phase.RUNNING, "AllNodesReady", f"all {desired} pods ready", False
    if s.lost_pods:
        message = f"the machine of {', '.join(s.lost_pods)} no longer answers; the other pods give up in a minute"
        return Phase.STARTING, "NodeLost", message, True
    if blocker := s.blocker:
        return Phase.STARTING, blocker.reason, blocker.message, True
    return Phase.STARTING, "PodsStarting", f"{nodes.ready} of {desired} pods ready", False


def _wait(s: Situation, phase: Phase, reason: str, message: str, **plan: Any) -> JobPlan:
    """As `_tell`, for what ends with an event, but where pods leave that never had a machine: nobody tells of those."""
    return _tell(s, phase, reason, message, look_again=s.settings.progress_interval_s, **plan)


def _tell(
    s: Situation,
    phase: Phase,
    reason: str,
    message: str,
    *,
    status: JobStatus | None = None,
    is_warning: bool = False,
    accepted: bool = True,
    **plan: Any,
) -> JobPlan:
    outcome = Outcome(phase, reason, message, is_warning, accepted, s.isolation)
    return told(s.job, status or s.status, outcome, s.now, **plan)


def _last_failure(s: Situation, failure: AttemptFailure) -> LastFailure:
    known = asdict(failure) | {"attempt": s.attempt, "time": s.now}
    cut = {"reason": failure.reason[:256], "message": failure.message[-MAX_FAILURE_MESSAGE:]}
    return LastFailure.model_validate(known | cut)
