"""One training job and the world around it, and the answers to the questions that a decision asks."""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property

from deepseek_operator.api.isolation import Isolation
from deepseek_operator.jobs import attempts, labels, workers
from deepseek_operator.jobs.backoff import pause_left
from deepseek_operator.jobs.blueprint import Blueprint, worker_job_name
from deepseek_operator.jobs.exclusion import still_excluded
from deepseek_operator.jobs.failure import job_condition
from deepseek_operator.jobs.limits import profile_mismatch
from deepseek_operator.jobs.manifests import children
from deepseek_operator.jobs.observed import Observed
from deepseek_operator.jobs.outcome import running_seconds
from deepseek_operator.jobs.status import JobStatus, NodeCounts, Phase, ReplicaStatuses
from deepseek_operator.jobs.training_job import TrainingJob
from deepseek_operator.jobs.worker_job import TRAIN
from deepseek_operator.objects.blockers import UNSCHEDULABLE, Blocker, blocker_of
from deepseek_operator.objects.observed import Manifest, Ref, ref
from deepseek_operator.objects.ownership import controller_of
from deepseek_operator.objects.pods import (
    has_started,
    has_succeeded,
    is_finished,
    is_lost,
    is_ready,
    writers,
)
from deepseek_operator.objects.quota import Shortage, shortage
from deepseek_operator.settings import Settings
from deepseek_trainer.contract.foreign import named

POLICY_MISSING = "PolicyMissing"
_UNVERIFIED = "the policy is applied; only a network plugin that supports NetworkPolicy enforces it"


@dataclass(frozen=True)
class Facts:
    job: TrainingJob
    observed: Observed
    settings: Settings
    now: datetime
    reported: JobStatus  # the status of the job, with the progress in it

    @cached_property
    def attempt(self) -> int:
        """The current attempt, or 0.  Existing worker jobs count, so that a lost status starts no attempt twice."""
        return max(self.job.status.attempt, *(labels.attempt_of(job) for job in self._jobs), 0)

    @property
    def counted(self) -> JobStatus:
        """The status that was reported, with the pods that this pass counts."""
        counts = {"replica_statuses": ReplicaStatuses(nodes=self._counts)}
        return self.reported.model_copy(update=counts)

    @cached_property
    def status(self) -> JobStatus:
        """The status that was reported, with what this pass counts and sees for the first time in it."""
        started = self.reported.start_time or (self.now if any(has_started(pod) for pod in self.pods) else None)
        update = {
            "attempt": self.attempt,
            "start_time": started,
            "excluded_nodes": still_excluded(self.reported.excluded_nodes, self.now),
        }
        status = self.counted.model_copy(update=update)
        if self.worker_job is None:
            return status
        made = datetime.fromisoformat(self.worker_job["metadata"]["creationTimestamp"])
        return attempts.seen(status, made, self.now, all_run=self.all_run)

    @property
    def all_run(self) -> bool:
        """Whether all pods of the current attempt run now, preparation included."""
        return workers.all_run(self.pods, self.num_nodes)

    @cached_property
    def ran_since(self) -> datetime | None:
        """Since when all pods of the current attempt ran at the same time, or None if they never have."""
        record = attempts.current(self.reported)
        known = record.running_time if record else None
        if known is None and self.job.status.phase is Phase.RUNNING:
            return self.now  # an operator without that record has seen it
        return known or workers.all_ran_since(self.pods, self.num_nodes)

    @property
    def have_trained(self) -> bool:
        """Whether the trainers of the current attempt have come to their end, whatever other containers do."""
        if self.worker_job is None:
            return False
        if job_condition(self.worker_job, "Complete"):
            return True
        is_over = job_condition(self.worker_job, "Failed") is not None or self._has_settled(workers.last_end(self.pods))
        return is_over and workers.have_trained(self.pods, self.num_nodes)

    @property
    def has_failed(self) -> bool:
        """Whether the current attempt failed.

        A Job that is bound to fail waits for all of its pods, even for those of a machine that will never answer again.
        Here it has failed once none of its pods can write.  A Job whose trainer failed waits for the containers that
        others have put into its pods, even for those that never end.  Here they get a short time to end by themselves.
        """
        if self.worker_job is None:
            return False
        is_doomed = job_condition(self.worker_job, "FailureTarget") is not None and bool(self.pods)
        if job_condition(self.worker_job, "Failed") or (is_doomed and not self.unfinished_pods):
            return True
        return self._has_settled(workers.first_failure(self.pods))

    def _has_settled(self, end: datetime | None) -> bool:
        """Whether a trainer ended so long ago that its pod would have ended, too, if it were to end by itself."""
        return end is not None and (self.now - end).total_seconds() >= self.settings.progress_interval_s

    @property
    def pause_left(self) -> float:
        """The seconds until the next try may begin, or 0."""
        return pause_left(self.status, self.now)

    @cached_property
    def worker_job(self) -> Manifest | None:
        """The worker job of the current attempt, unless it is being deleted."""
        return next((job for job in self._present if labels.attempt_of(job) == self.attempt), None)

    @cached_property
    def pods(self) -> tuple[Manifest, ...]:
        """The pods of the current attempt, finished ones included."""
        return tuple(pod for pod in self._pods if labels.attempt_of(pod) == self.attempt)

    @property
    def unfinished_pods(self) -> tuple[str, ...]:
        """The names of the pods, of any attempt, that can still write to the volume."""
        attempts = {labels.attempt_of(pod) for pod in self._pods}
        groups = ([pod for pod in self._pods if labels.attempt_of(pod) == attempt] for attempt in attempts)
        return tuple(sorted(pod["metadata"]["name"] for group in groups for pod in writers(group, self.num_nodes)))

    @property
    def lost_pods(self) -> tuple[str, ...]:
        """The names of the current attempt's pods whose machine no longer answers."""
        return tuple(pod["metadata"]["name"] for pod in self.pods if is_lost(pod))

    @property
    def has_workers(self) -> bool:
        return bool(self.unfinished_pods) or len(self._jobs) > len(self._kept)

    @property
    def all_jobs(self) -> tuple[Ref, ...]:
        """Every worker job that is not being deleted."""
        return tuple(ref(job) for job in self._present)

    @property
    def live_jobs(self) -> tuple[Ref, ...]:
        """The worker jobs to delete when the job must stop: all but those that are kept for their logs."""
        kept = {job["metadata"]["uid"] for job in self._kept}
        return tuple(job for job in self.all_jobs if job.uid not in kept)

    @property
    def older_jobs(self) -> tuple[Ref, ...]:
        """The worker jobs to delete once the current attempt runs."""
        current = self.worker_job["metadata"]["uid"] if self.worker_job else None
        return tuple(job for job in self.live_jobs if job.uid != current)

    @cached_property
    def _kept(self) -> tuple[Manifest, ...]:
        """The worker jobs of the last failed attempts before the current one, which stay for their logs."""
        older = [job for job in self._present if labels.attempt_of(job) < self.attempt]
        return workers.last_failed(older, self._pods, self.job.spec.run_policy.failed_attempts_history_limit)

    @property
    def _present(self) -> tuple[Manifest, ...]:
        return tuple(job for job in self._jobs if "deletionTimestamp" not in job["metadata"])

    @property
    def num_nodes(self) -> int:
        return self.job.spec.trainer.num_nodes

    @property
    def lacks_profile(self) -> bool:
        return self.job.spec.trainer.profile is not None and self.observed.profile is None

    @property
    def profile_problem(self) -> tuple[str, str] | None:
        """The reason and message of what is wrong with the profile of this job, or None."""
        name = self.job.spec.trainer.profile
        if self.observed.profile_problem:
            return "ProfileInvalid", f"TrainingProfile {named(name)}: {self.observed.profile_problem}"
        if self.lacks_profile:
            return (
                "ProfileNotFound",
                f"TrainingProfile {named(name)} does not exist: see `kubectl get trainingprofiles`",
            )
        profile = self.observed.profile
        mismatch = profile and profile_mismatch(self.job.spec, profile)
        return ("ProfileMismatch", mismatch) if mismatch else None

    @cached_property
    def children(self) -> tuple[Manifest, ...]:
        """All objects that the current attempt, or the first one, needs.  The worker job is last."""
        blueprint = Blueprint(
            self.job.spec,
            self.job.owner,
            self.observed.profile,
            self.settings,
            max(1, self.attempt),
            self.job.labels,
            makes_claim=self.status.start_time is None,
            excluded_nodes=tuple(node.name for node in self.status.excluded_nodes),
        )
        return children(blueprint)

    @property
    def supports(self) -> tuple[Manifest, ...]:
        """The objects that may be applied again while pods run.

        The worker job is not among them, because its template is immutable.  Neither is the claim.
        """
        if self.lacks_profile:
            return ()
        return tuple(child for child in self.children if child["kind"] not in {"Job", "PersistentVolumeClaim"})

    @property
    def lost_its_policy(self) -> bool:
        return self.isolation is not None and self.isolation[1] == POLICY_MISSING

    @property
    def isolation(self) -> tuple[str, str, str] | None:
        """The status, reason and message of NetworkIsolated, which never claim more than is known.  None: as before."""
        if self.job.spec.network.isolation is not Isolation.ISOLATED:
            return "False", "Unmanaged", "network.isolation is Unmanaged"
        match self.observed.isolated:
            case None:
                return None
            case False:
                return "False", POLICY_MISSING, "the policy is not there yet"
            case True:
                return "Unknown", "PolicyApplied", _UNVERIFIED

    @property
    def blocker(self) -> Blocker | None:
        unfinished = [pod for pod in self.pods if not is_finished(pod)]
        found = blocker_of(unfinished, self.observed.warnings, self.num_nodes)
        if found is None or found.reason != UNSCHEDULABLE or not self.status.excluded_nodes:
            return found
        away = ", ".join(f"{node.name} ({node.reason})" for node in self.status.excluded_nodes)
        return replace(found, message=f"{found.message}; the job keeps away from {away} for now")

    @property
    def shortage(self) -> Shortage | None:
        """Why the next worker job would not get all of its pods at once.  A job in a queue is left to the queue."""
        if labels.QUEUE in self.job.labels:
            return None
        seen = self.observed
        return shortage(self.children[-1], seen.quotas, seen.limit_ranges, seen.default_priority)

    @property
    def seconds_left(self) -> float | None:
        """The time until runPolicy.activeDeadlineSeconds, or None if the job has no such limit."""
        limit = self.job.spec.run_policy.active_deadline_seconds
        return None if limit is None else limit - running_seconds(self.status, self.now)

    @cached_property
    def _jobs(self) -> tuple[Manifest, ...]:
        """The worker jobs that this job controls.  Labels alone do not count, because anybody can set them."""
        uid = self.job.owner.uid
        return tuple(job for job in self.observed.worker_jobs if controller_of(job).get("uid") == uid)

    @cached_property
    def _pods(self) -> tuple[Manifest, ...]:
        """The pods that were made for our worker jobs, which may be gone before their pods."""
        owner = self.job.owner

        def controller(pod: Manifest) -> tuple[str, str]:
            return "Job", worker_job_name(owner, labels.attempt_of(pod))

        return tuple(
            pod
            for pod in self.observed.pods
            if (controller_of(pod).get("kind"), controller_of(pod).get("name")) == controller(pod)
        )

    @cached_property
    def _counts(self) -> NodeCounts:
        phases = [pod.get("status", {}).get("phase", "Pending") for pod in self.pods]
        return NodeCounts(
            desired=self.num_nodes,
            active=sum(phase in {"Pending", "Running", "Unknown"} for phase in phases),
            ready=sum(is_ready(pod, TRAIN) for pod in self.pods),
            succeeded=sum(has_succeeded(pod, TRAIN) for pod in self.pods),
            failed=phases.count("Failed"),
        )
