"""The status of a DeepSeekTrainingJob, and the schema of that part of the CRD.

The status is output.  Later passes read a few fields back: attempt, restarts, phase, running time and conditions.
These are written before anything acts on them.
"""

from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field

from deepseek_operator.api.conditions import Condition, Text, Time, Word
from deepseek_trainer.contract.findings import FindingType
from deepseek_trainer.contract.rules import Model


class Phase(StrEnum):
    PENDING = "Pending"  # accepted; the worker job has not been seen yet, or waits for room in a quota
    QUEUED = "Queued"  # the worker job waits for its queue
    STARTING = "Starting"  # not all pods are ready
    RUNNING = "Running"
    RESTARTING = "Restarting"  # the next attempt is due; its worker job has not been seen yet
    SUSPENDING = "Suspending"  # pods write a checkpoint and leave
    SUSPENDED = "Suspended"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class ConditionType(StrEnum):
    ACCEPTED = "Accepted"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    RESTARTING = "Restarting"
    NETWORK_ISOLATED = "NetworkIsolated"
    CHECKPOINT_READY = "CheckpointReady"
    STORAGE_FAILING = "StorageFailing"  # only of a job whose volume has failed
    # What the run found out about itself: contract/findings.py.
    DATA_COMPLETE = FindingType.DATA_COMPLETE.value
    BATCH_FITS = FindingType.BATCH_FITS.value  # only of a job whose batch does not
    STOPPED_EARLY = FindingType.STOPPED_EARLY.value  # only of a job that was
    IMPROVED = FindingType.IMPROVED.value
    COMPLETE = "Complete"
    FAILED = "Failed"
    # kstatus (kubectl wait, Flux, Argo CD) understands these three.
    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Restarts(Model):
    """Why attempts ended before the job did."""

    job: Annotated[int, Field(ge=0, description="Attempts after failures; compared with runPolicy.maxRestarts.")] = 0
    in_place: Annotated[int, Field(ge=0, description="Restarts of the ranks inside running pods, in this attempt.")] = 0
    disruption: Annotated[
        int,
        Field(ge=0, description="Attempts after evictions and deleted pods; compared with runPolicy.maxDisruptions."),
    ] = 0


class NodeCounts(Model):
    """Pods of the current attempt."""

    desired: Annotated[int, Field(ge=0, description="Pods wanted.")] = 0
    active: Annotated[int, Field(ge=0, description="Pods pending or running.")] = 0
    ready: Annotated[int, Field(ge=0, description="Pods ready.")] = 0
    succeeded: Annotated[int, Field(ge=0, description="Pods that finished.")] = 0
    failed: Annotated[int, Field(ge=0, description="Pods that failed.")] = 0


class ReplicaStatuses(Model):
    """Counts of pods by role; there is one role."""

    nodes: Annotated[NodeCounts, Field(description="Training nodes.")] = NodeCounts()


class AttemptStatus(Model):
    """One attempt: when it began and ended, and where and why it ended."""

    attempt: Annotated[int, Field(ge=0, description="Its number.")]
    start_time: Annotated[Time, Field(description="When its worker Job was made.")]
    running_time: Annotated[Time | None, Field(description="When all of its pods first ran at the same time.")] = None
    end_time: Annotated[Time | None, Field(description="When its end was seen; none while it goes on.")] = None
    node: Annotated[int | None, Field(ge=0, description="Index of the pod that ended it.")] = None
    node_name: Annotated[Word | None, Field(max_length=253, description="Kubernetes node of that pod.")] = None
    exit_code: Annotated[int | None, Field(description="Exit code of its trainer container.")] = None
    reason: Annotated[Word, Field(max_length=1024, description="Why it ended, as one CamelCase word.")] = ""


class ExcludedNode(Model):
    """A Kubernetes node that the next attempts keep away from for a time."""

    name: Annotated[Word, Field(max_length=253, description="Name of the node.")]
    reason: Annotated[Word, Field(max_length=1024, description="Why, as one CamelCase word.")]
    until: Annotated[Time, Field(description="When it may be used again.")]


class LastFailure(Model):
    """The failure that ended the last attempt that failed."""

    attempt: Annotated[int, Field(ge=0, description="Attempt that it ended.")]
    rank: Annotated[int | None, Field(ge=0, description="Global rank that failed first, if known.")] = None
    node: Annotated[int | None, Field(ge=0, description="Index of the pod.")] = None
    pod_name: Annotated[Word | None, Field(max_length=253, description="Pod.")] = None
    node_name: Annotated[Word | None, Field(max_length=253, description="Kubernetes node that the pod ran on.")] = None
    exit_code: Annotated[int | None, Field(description="Exit code; docs/operations.md explains each.")] = None
    reason: Annotated[Word, Field(max_length=1024, description="Why, as one CamelCase word.")]
    message: Annotated[Text, Field(description="Last lines of the failed rank.")] = ""
    time: Annotated[Time, Field(description="When it was seen.")]


class Metric(Model):
    """One value reported by the trainer."""

    name: Annotated[str, Field(max_length=63, description="Name, for example loss.")]
    value: Annotated[str, Field(max_length=63, description="Value as a decimal number.")]


class TrainerStatus(Model):
    """Progress as rank 0 tells it, in the shape of Kubeflow's KEP-2779."""

    progress_percentage: Annotated[int | None, Field(ge=0, le=100, description="Share of the steps done.")] = None
    estimated_remaining_seconds: Annotated[int | None, Field(ge=0, description="Time left, in seconds.")] = None
    metrics: Annotated[
        tuple[Metric, ...],
        Field(max_length=32, description="Latest loss, eval_loss, learning_rate, tokens_per_second."),
    ] = ()
    stage: Annotated[
        str | None, Field(max_length=63, description="preparing, evaluating, training, exporting or done.")
    ] = None
    step: Annotated[int | None, Field(ge=0, description="Optimizer steps done.")] = None
    max_steps: Annotated[int | None, Field(ge=0, description="Optimizer steps of the whole run.")] = None
    epoch: Annotated[str | None, Field(max_length=63, description="Passes over the data, a decimal number.")] = None
    last_updated_time: Annotated[Time | None, Field(description="When rank 0 was last heard.")] = None


class LastCheckpoint(Model):
    """The newest complete checkpoint."""

    step: Annotated[int, Field(ge=0, description="Optimizer step that it holds.")]
    time: Annotated[Time | None, Field(description="When it was committed.")] = None
    size_bytes: Annotated[int | None, Field(ge=0, description="Size in bytes.")] = None
    sealed: Annotated[bool, Field(description="Whether it is encrypted.")] = False
    key_id: Annotated[Word | None, Field(max_length=253, description="Id of the data key that sealed it.")] = None
    manifest_digest: Annotated[Word | None, Field(max_length=253, description="Digest of its manifest.")] = None


class JobStatus(Model):
    """What was last seen of the job."""

    observed_generation: Annotated[
        int, Field(ge=0, description="Generation of the spec that this status is about.")
    ] = 0
    phase: Annotated[Phase | None, Field(description="One word for people; machines read the conditions.")] = None
    message: Annotated[Text, Field(description="What is going on or what is missing, with the way out.")] = ""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=32, description="State for machines.")] = ()
    start_time: Annotated[Time | None, Field(description="When the first pod started.")] = None
    completion_time: Annotated[Time | None, Field(description="When the job succeeded or failed.")] = None
    attempt: Annotated[int, Field(ge=0, description="Current attempt; 0: not started. Never falls.")] = 0
    restarts: Annotated[Restarts, Field(description="Attempts and restarts by cause.")] = Restarts()
    not_placed: Annotated[
        int, Field(ge=0, description="Tries that ended before all pods ran at the same time; no restarts, not limited.")
    ] = 0
    attempts: Annotated[
        tuple[AttemptStatus, ...], Field(max_length=10, description="The last attempts, the newest last.")
    ] = ()
    back_offs: Annotated[
        int,
        Field(ge=0, description="Pauses since an attempt ran well; each is twice as long as the one before."),
    ] = 0
    next_attempt_time: Annotated[Time | None, Field(description="When the pause before the next try ends.")] = None
    excluded_nodes: Annotated[
        tuple[ExcludedNode, ...], Field(max_length=8, description="Nodes that the next attempts keep away from.")
    ] = ()
    replica_statuses: Annotated[ReplicaStatuses, Field(description="Counts of pods.")] = ReplicaStatuses()
    running_since: Annotated[
        Time | None, Field(description="Since when all pods run, preparation included; none while one does not.")
    ] = None
    running_seconds: Annotated[
        int,
        Field(ge=0, description="Seconds that all pods ran before runningSince; activeDeadlineSeconds limits the sum."),
    ] = 0
    last_failure: Annotated[LastFailure | None, Field(description="Why the last failed attempt ended.")] = None
    trainer_status: Annotated[TrainerStatus | None, Field(description="Progress of the training.")] = None
    last_checkpoint: Annotated[LastCheckpoint | None, Field(description="Newest complete checkpoint.")] = None

    def condition(self, type_: str) -> Condition | None:
        return next((condition for condition in self.conditions if condition.type == type_), None)

    def is_true(self, type_: str) -> bool:
        condition = self.condition(type_)
        return condition is not None and condition.status == "True"

    @property
    def is_finished(self) -> bool:
        """Whether only a deletion can still happen."""
        return self.is_true(ConditionType.COMPLETE) or self.is_true(ConditionType.FAILED)

    def manifest(self) -> dict[str, Any]:
        """The status in the form that the API server takes."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)
