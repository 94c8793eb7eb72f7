"""What a pass sees of a training job: its worker jobs and pods, and everything that shows their state."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Protocol

from pydantic import ValidationError

from deepseek_operator.api.names import API_VERSION, PROFILE_KIND
from deepseek_operator.concurrency import gathered
from deepseek_operator.jobs import labels
from deepseek_operator.jobs.blueprint import child_name
from deepseek_operator.jobs.failure import job_condition
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.profile import ProfileSpec
from deepseek_operator.jobs.training_job import TrainingJob, validation_messages
from deepseek_operator.objects.blockers import claims_of, waits_for_claim
from deepseek_operator.objects.kind import Child, Reads
from deepseek_operator.objects.observed import Manifest, Owner, WarningEvent
from deepseek_operator.objects.ownership import controller_of
from deepseek_operator.objects.pods import has_machine, is_finished
from deepseek_operator.objects.quota import counts_priorities
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.names import METRICS_PORT
from deepseek_trainer.contract.progress import Progress

# A worker job without a status is as it was made: kube-controller-manager has not looked at it.
WORKER_JOB: Final = Child("batch/v1", "Job", spec=("parallelism", "suspend"), wakes=lambda job: bool(job.get("status")))
# A deleted pod is handed on, because a pass cannot find its last words later.  Pods without a machine wake nobody: they
# have no last words, and the status of their worker job reports that they were created.
POD: Final = Child(
    "v1", "Pod", spec=("nodeName",), annotations=(labels.COMPLETION_INDEX,), wakes=has_machine, leaves_words=True
)
# Of our own policies there is no news but their deletion.
POLICY: Final = Child("networking.k8s.io/v1", "NetworkPolicy", spec=("podSelector",), wakes=lambda _: False)


class World(Protocol):
    """The place in which a training job is looked at, such as a cluster or one machine."""

    async def profile(self, name: str) -> Manifest | None:
        """The TrainingProfile of this name, or None."""

    async def observe(self, owner: Owner, attempt: int) -> Observed:
        """Everything but the profile: worker jobs and pods of every attempt, progress and warnings of the newest one.

        `attempt` is the current one by the status.  Quotas are read until its worker job exists.
        """


async def look(job: TrainingJob, world: World) -> Observed | None:
    """Look at the job.  None: it is finished and has no pods, or its spec breaks a rule; then there is no need."""
    if job.holders:
        return await world.observe(job.owner, job.status.attempt)
    if job.problems or (job.status.is_finished and not job.status.replica_statuses.nodes.active):
        return None
    profile, problem = await _profile(job, world)
    observed = await world.observe(job.owner, job.status.attempt)
    return replace(observed, profile=profile, profile_problem=problem)


async def _profile(job: TrainingJob, world: World) -> tuple[ProfileSpec | None, str]:
    """The profile, parsed.  Without one: None and ''.  If it breaks a rule, as older CRDs let it: None and the rule."""
    name = job.spec.trainer.profile
    manifest = await world.profile(name) if name else None
    try:
        return ProfileSpec.model_validate(manifest.get("spec")) if manifest else None, ""
    except ValidationError as error:
        return None, "; ".join(validation_messages(error))


@dataclass(frozen=True, slots=True)
class Live:
    """The world as a cluster shows it at the time `now`."""

    reads: Reads
    settings: Settings
    now: datetime
    metrics_port: int = METRICS_PORT
    known: Sequence[Manifest] | None = None  # what was made for the job as the watches saw it; None: ask for it

    async def profile(self, name: str) -> Manifest | None:
        if self.known is not None:
            return None  # no plan that only watches reads it
        return await self.reads.get_shared(API_VERSION, PROFILE_KIND, name)

    async def observe(self, owner: Owner, attempt: int) -> Observed:
        found = await self._children(owner)
        jobs, pods = (_of(owner, children) for children in found)
        newest = max(jobs, key=labels.attempt_of, default=None)
        quotas = () if _is_made(attempt, jobs) else await self.reads.quotas(owner.namespace)
        current = [pod for pod in pods if newest and labels.attempt_of(pod) == labels.attempt_of(newest)]
        return Observed(
            worker_jobs=jobs,
            pods=pods,
            departed=self.reads.departed(owner),
            progress=await self._progress(current),
            warnings=await self._warnings(newest, current) if newest else (),
            isolated=await self._is_isolated(owner) if newest else None,
            quotas=quotas,
            limit_ranges=await self.reads.listed("v1", "LimitRange", owner.namespace) if quotas else (),
            default_priority=await self._default_priority(quotas),
            leftovers=_leftovers(owner, (manifest for children in found for manifest in children)),
        )

    async def _default_priority(self, quotas: Iterable[Manifest]) -> str | None:
        """The PriorityClass of pods that name none.  It is asked for only where a quota is for some classes."""
        if not any(counts_priorities(quota) for quota in quotas):
            return None
        classes = await self.reads.listed("scheduling.k8s.io/v1", "PriorityClass", "")
        return next((each["metadata"]["name"] for each in classes if each.get("globalDefault")), None)

    async def _children(self, owner: Owner) -> Sequence[tuple[Manifest, ...]]:
        """The worker jobs, and the pods.  A worker job that knows of more pods than we do was seen before its pods."""
        if self.known is not None:
            jobs, pods = (tuple(each for each in self.known if each["kind"] == kind) for kind in ("Job", "Pod"))
            active = sum(job.get("status", {}).get("active", 0) for job in jobs)
            if active <= sum(not is_finished(pod) for pod in pods):
                return jobs, pods
        return await gathered(*(self.reads.children(owner, child) for child in (WORKER_JOB, POD)))

    async def _progress(self, pods: Iterable[Manifest]) -> Progress | None:
        """The progress that rank 0 reports, or None if it does not answer."""
        running = (pod for pod in pods if pod.get("status", {}).get("phase") == "Running")
        node_0 = next((pod for pod in running if labels.index_of(pod) == 0), None)
        page = await self.reads.page(node_0, self.metrics_port, "/progress") if node_0 else None
        return Progress.read(page) if page else None

    async def _warnings(self, newest: Manifest, pods: Sequence[Manifest]) -> tuple[WarningEvent, ...]:
        """Warnings about a worker job that should have all pods by now, and about one pod that its machine holds up.

        Warnings about pods without a machine are not read, because their status says what they wait for.  If that may
        be a claim, the events about claims are read.  For each read of events, the API server reads all events of the
        namespace from disk.
        """
        created = datetime.fromisoformat(newest["metadata"]["creationTimestamp"])
        over = any(job_condition(newest, type_) for type_ in ("Complete", "Failed"))
        if over or not newest.get("status") or (self.now - created).total_seconds() < self.settings.warnings_after_s:
            return ()
        waiting = [pod for pod in pods if has_machine(pod) and pod.get("status", {}).get("phase") == "Pending"]
        about = [*waiting[:1], *([newest] if len(pods) < newest["spec"]["parallelism"] else [])]
        found = [await self.reads.warnings(manifest) for manifest in about]
        found.append(await self._of_claims(newest["metadata"], pods))
        return tuple(warning for warnings in found for warning in warnings)

    async def _of_claims(self, meta: Manifest, pods: Sequence[Manifest]) -> tuple[WarningEvent, ...]:
        """The events about the claims that one of the pods mounts, if it may wait for one of them."""
        waiting = [pod for pod in pods if not has_machine(pod) and not is_finished(pod) and waits_for_claim(pod)]
        claims = claims_of(waiting[0]) if waiting else ()  # the memory knows of none
        if not claims:
            return ()
        found = await self.reads.events(meta["namespace"], "PersistentVolumeClaim")
        return tuple(event for event in found if event.name in claims)

    async def _is_isolated(self, owner: Owner) -> bool:
        policy = await self._policy(owner)
        if policy is None or controller_of(policy).get("uid") != owner.uid:
            return False  # somebody else's policy may let anybody in, and go at any time
        selected: Manifest | None = policy["spec"].get("podSelector", {}).get("matchLabels")
        return selected == {labels.JOB_UID: owner.uid}

    async def _policy(self, owner: Owner) -> Manifest | None:
        """What has the name of the job's policy."""
        name = child_name(owner)
        if self.known is None:
            return await self.reads.get(POLICY.api_version, POLICY.kind, owner.namespace, name)
        policies = (each for each in self.known if each["kind"] == POLICY.kind)
        return next((policy for policy in policies if policy["metadata"]["name"] == name), None)


def _of(owner: Owner, found: Iterable[Manifest]) -> tuple[Manifest, ...]:
    return tuple(child for child in found if child["metadata"]["labels"].get(labels.JOB_UID) == owner.uid)


def _leftovers(owner: Owner, found: Iterable[Manifest]) -> tuple[str, ...]:
    """The kind and name of each object that was made for an earlier job of this name.

    The label with the uid is to be trusted, because an admission policy lets nobody else set it.
    """
    uids = ((child, child["metadata"]["labels"].get(labels.JOB_UID)) for child in found)
    left = (child for child, uid in uids if uid not in {None, owner.uid} and not is_finished(child))
    return tuple(f"{child['kind']} {child['metadata']['name']}" for child in left)


def _is_made(attempt: int, worker_jobs: Iterable[Manifest]) -> bool:
    """Whether a worker job of `attempt` exists, or of a later one that the status does not know yet."""
    present = (job for job in worker_jobs if "deletionTimestamp" not in job["metadata"])
    return any(labels.attempt_of(job) >= attempt for job in present)
