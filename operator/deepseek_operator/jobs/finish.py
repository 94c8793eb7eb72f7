"""Plans for jobs that only go: finished ones, and deleted ones that somebody's finalizers keep."""

from dataclasses import replace
from datetime import datetime, timedelta

from deepseek_operator.api.names import API_VERSION, KIND
from deepseek_operator.jobs.facts import Facts
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.outcome import JobPlan, Outcome, plan_with
from deepseek_operator.jobs.status import Phase, ReplicaStatuses
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.objects.observed import Ref
from deepseek_operator.objects.plan import Plan
from deepseek_operator.settings import Settings


def finished(job: TrainingJob, now: datetime) -> JobPlan:
    """Plan a pass over a job that succeeded or failed.  It is deleted when its time has come."""
    status = job.status.model_copy(update={"observed_generation": job.generation})
    if job.ttl_s is None or status.completion_time is None:
        return Plan(status, only_watches=True)
    left = (status.completion_time + timedelta(seconds=job.ttl_s) - now).total_seconds()
    if left > 0:
        return Plan(status, look_again=left, only_watches=True)
    return Plan(status, delete=(Ref(API_VERSION, KIND, job.owner.namespace, job.owner.name, job.owner.uid),))


def finished_with_pods(job: TrainingJob, observed: Observed, settings: Settings, now: datetime) -> JobPlan:
    """Plan a pass over a finished job that had pods left: containers that others have put into them run on.

    They would keep their machines.  If they do not end in a short time, their worker job is deleted.
    """
    facts = Facts(job, observed, settings, now, job.status)
    left = len(facts.unfinished_pods)
    nodes = job.status.replica_statuses.nodes.model_copy(update={"active": left})
    counted = job.status.model_copy(update={"replica_statuses": ReplicaStatuses(nodes=nodes)})
    plan = finished(replace(job, status=counted), now)
    if not left:
        return plan
    soon = min(settings.progress_interval_s, plan.look_again or settings.progress_interval_s)
    end = job.status.completion_time or now
    settled = (now - end).total_seconds() >= settings.progress_interval_s
    return replace(plan, delete=(*plan.delete, *(facts.live_jobs if settled else ())), look_again=soon)


def leaving(job: TrainingJob, observed: Observed, settings: Settings, now: datetime) -> JobPlan:
    """Plan a pass over a job that was deleted, and that somebody's finalizers keep.  Its pods are stopped."""
    if job.status.is_finished:
        return Plan(job.status)
    jobs = Facts(job, observed, settings, now, job.status).all_jobs
    phase = Phase.SUSPENDING if jobs or observed.pods else Phase.SUSPENDED
    who = ", ".join(job.holders)
    message = f"deleted; its pods are stopped, and it stays until nobody holds it: metadata.finalizers has {who}"
    plan = plan_with(Outcome(phase, "BeingDeleted", message, is_warning=True), job, job.status, now)
    return replace(plan, delete=jobs, look_again=settings.progress_interval_s if observed.pods else None)
