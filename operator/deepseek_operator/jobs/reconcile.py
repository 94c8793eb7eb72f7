"""One pass over one training job: look, decide, act, report.  Holds no rule of the domain."""

from dataclasses import replace
from datetime import datetime
from typing import Protocol

from pydantic import ValidationError

from deepseek_operator.jobs.decide import decide, finished, invalid, refused
from deepseek_operator.jobs.plan import Plan
from deepseek_operator.jobs.spec import ProfileSpec
from deepseek_operator.jobs.status import whole_seconds
from deepseek_operator.jobs.training_job import TrainingJob, validation_messages
from deepseek_operator.objects.observed import JobKey, Manifest, Notice, Observed, Owner, Ref
from deepseek_operator.settings import Settings


class RefusedError(Exception):
    """The API server will not have an object: quota, admission policy, or an invalid or immutable field."""


class Cluster(Protocol):
    """All that a pass can see and do.  Errors other than RefusedError go up to the queue, which tries again."""

    async def training_job(self, key: JobKey) -> Manifest | None:
        """The DeepSeekTrainingJob with its status, or None."""

    async def profile(self, name: str) -> Manifest | None:
        """The TrainingProfile (cluster-scoped), or None."""

    async def observe(self, owner: Owner, attempt: int) -> Observed:
        """Worker jobs and pods of every attempt; progress and warnings of the newest.

        `attempt` is the current one as far as the status tells; quotas are of interest until its worker job is made.
        """

    async def apply(self, manifest: Manifest) -> None:
        """Create or update by server-side apply.  Raises RefusedError."""

    async def delete(self, ref: Ref) -> None:
        """Delete with everything it owns, if it is still the one with `ref.uid`; done at once, gone later."""

    async def set_status(self, owner: Owner, status: Manifest) -> None:
        """Replace what the operator reports; the last write of a pass, and only if something changed."""

    async def emit(self, owner: Owner, notice: Notice) -> None:
        """Post a Kubernetes event about the job; may be lost."""


async def reconcile(key: JobKey, cluster: Cluster, settings: Settings, now: datetime) -> float | None:
    """Bring `key` one step closer; return the seconds until the next look.

    None means that nothing is left to wait for but an event.  A spec that cannot work is not an
    error here: it ends up in the status, where the person who wrote it looks.
    """
    manifest = await cluster.training_job(key)
    if manifest is None or "deletionTimestamp" in manifest["metadata"]:
        return None  # children go with their owner: Kubernetes collects them by ownerReferences
    job = TrainingJob.read(manifest)
    plan = await _plan(job, cluster, settings, whole_seconds(now))
    try:
        await _act(plan, cluster)
    except RefusedError as refusal:
        plan = refused(job, plan, str(refusal), settings, whole_seconds(now))
    if plan.report:
        await _report(job, plan, cluster)
    return plan.look_again


async def _plan(job: TrainingJob, cluster: Cluster, settings: Settings, now: datetime) -> Plan:
    if job.status.is_finished:
        return finished(job, now)
    if job.problems:
        return invalid(job, now)
    profile, problem = await _profile(job, cluster)
    observed = await cluster.observe(job.owner, job.status.attempt)
    return decide(job, profile, replace(observed, profile_problem=problem), settings, now)


async def _profile(job: TrainingJob, cluster: Cluster) -> tuple[ProfileSpec | None, str]:
    """None without one, or with the rule that it breaks: an older CRD may have let it in."""
    name = job.spec.trainer.profile
    manifest = await cluster.profile(name) if name else None
    try:
        return ProfileSpec.model_validate(manifest.get("spec")) if manifest else None, ""
    except ValidationError as error:
        return None, "; ".join(validation_messages(error))


async def _act(plan: Plan, cluster: Cluster) -> None:
    for manifest in plan.apply:
        await cluster.apply(manifest)
    for ref in plan.delete:
        await cluster.delete(ref)


async def _report(job: TrainingJob, plan: Plan, cluster: Cluster) -> None:
    """Write the status last, so that it never runs ahead of what was done; tell people after that."""
    if plan.status.manifest() != job.status.manifest():
        await cluster.set_status(job.owner, plan.status.manifest())
        for notice in plan.notices:
            await cluster.emit(job.owner, notice)
