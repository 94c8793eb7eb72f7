"""The API: what a DeepSeekTrainingJob may say.  `profile.py` holds what a TrainingProfile may say.

The parts that the trainer reads stand in deepseek_trainer.contract, and this module adds those for Kubernetes.
`crd.py` turns the models into the CRDs, and `apidocs.py` into docs/api.md.
"""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field

from deepseek_operator.api.isolation import NetworkSpec
from deepseek_operator.jobs.image import Image
from deepseek_operator.jobs.key_server import KEY_SERVER_RULES
from deepseek_operator.jobs.pod_metadata import PodMetadata
from deepseek_operator.jobs.resources import Quantity, Resources, accelerators_of
from deepseek_trainer.contract.checkpoint import CheckpointPolicy
from deepseek_trainer.contract.config import JobIdentity, TrainingConfig
from deepseek_trainer.contract.data import DataSpec
from deepseek_trainer.contract.evaluation import EvaluationSpec
from deepseek_trainer.contract.export import ExportSpec
from deepseek_trainer.contract.images import JOB_RULES
from deepseek_trainer.contract.method import ADAPTED, DORA_RULES, MethodSpec, MethodType, PreferenceLoss
from deepseek_trainer.contract.model import ModelSpec
from deepseek_trainer.contract.optimization import OptimizationSpec, Schedule
from deepseek_trainer.contract.rules import Model, Rule
from deepseek_trainer.contract.volume import DnsName

# "<name>-a<attempt>-<index>" is the host name of a pod, which has at most 63 characters.
MAX_NAME_LENGTH: Final = 50


class RunPolicy(Model):
    """Limits on the run as a whole.  All of them may be changed while it runs."""

    active_deadline_seconds: Annotated[
        int | None,
        Field(
            ge=1,
            description="The job fails after running this long. Time counts while all pods run, preparation included; "
            "waiting for machines, queued and suspended time does not.",
        ),
    ] = None
    ttl_seconds_after_finished: Annotated[
        int | None, Field(ge=0, description="The job is deleted this long after it finished. Default: kept.")
    ] = None
    max_restarts: Annotated[
        int,
        Field(ge=0, le=1000, description="New attempts after failures that a retry can help; evictions do not count."),
    ] = 3
    max_disruptions: Annotated[
        int,
        Field(ge=0, le=10000, description="New attempts after evictions, preemptions, lost nodes and deleted pods."),
    ] = 100
    failed_attempts_history_limit: Annotated[
        int,
        Field(ge=0, le=10, description="Failed attempts before the current one whose pods are kept for their logs."),
    ] = 1


class TrainerSpec(Model):
    """Where the training runs: image and size."""

    image: Annotated[Image | None, Field(description="Trainer image by digest (name@sha256:...).")] = None
    profile: Annotated[
        DnsName | None, Field(description="TrainingProfile of the platform team that names the image.")
    ] = None
    num_nodes: Annotated[int, Field(ge=1, le=1000, description="Pods, on machines of their own if possible.")] = 1
    num_proc_per_node: Annotated[
        int, Field(ge=1, le=64, description="Processes per pod; equals its accelerators if it has any.")
    ] = 1
    resources_per_node: Annotated[
        Resources | None, Field(description="Resources of each pod; default: the profile's.")
    ] = None
    pod_metadata: Annotated[
        PodMetadata | None,
        Field(description="Labels and annotations of the pods, as far as the profile's podMetadataPrefixes allow."),
    ] = None

    rules: ClassVar = (
        Rule(
            "has(self.image) != has(self.profile)",
            "give exactly one of image (by digest) and profile",
            lambda self: (self.image is None) != (self.profile is None),
        ),
        Rule(
            "!has(self.resourcesPerNode) || !has(self.resourcesPerNode.limits) || self.resourcesPerNode.limits.all(r,"
            " !r.startsWith('nvidia.com/') || string(self.resourcesPerNode.limits[r]) == string(self.numProcPerNode))",
            "numProcPerNode must equal the nvidia.com/ devices of resourcesPerNode.limits: one process drives one",
            lambda self: self._drives_its_accelerators,
        ),
        Rule(
            "!has(self.podMetadata) || has(self.profile)",
            "podMetadata needs a profile, which says in podMetadataPrefixes what a job may set",
            lambda self: self.pod_metadata is None or self.profile is not None,
        ),
    )

    @property
    def _drives_its_accelerators(self) -> bool:
        devices = accelerators_of(self.resources_per_node)
        return devices is None or str(devices.count) == str(self.num_proc_per_node)

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.num_proc_per_node


class AccessMode(StrEnum):
    READ_WRITE_ONCE = "ReadWriteOnce"
    READ_WRITE_MANY = "ReadWriteMany"


class VolumeRetention(StrEnum):
    RETAIN = "Retain"
    DELETE = "Delete"


class WorkVolume(Model):
    """The job's own volume: prepared data, checkpoints, logs, result.  Shared by all its pods."""

    claim_name: Annotated[DnsName | None, Field(description="Existing claim, instead of one made for the job.")] = None
    storage_class_name: Annotated[
        DnsName | None, Field(description="Class of the claim made; default: the cluster's.")
    ] = None
    size: Annotated[Quantity, Field(description="Size of the claim made.")] = "100Gi"
    access_mode: Annotated[
        AccessMode | None,
        Field(
            description="Default: ReadWriteOnce for one node, else ReadWriteMany. With ReadWriteOnce, all pods run on "
            "one machine."
        ),
    ] = None
    when_deleted: Annotated[
        VolumeRetention, Field(description="What happens to the claim made when the job is deleted.")
    ] = VolumeRetention.RETAIN

    rules: ClassVar = (
        Rule(
            "!has(self.claimName) || !has(self.storageClassName)",
            "storageClassName is for a claim that is made: drop it, or drop claimName",
            lambda self: self.claim_name is None or self.storage_class_name is None,
        ),
    )

    def mode(self, num_nodes: int) -> AccessMode:
        """The access mode of the claim for a job of `num_nodes`."""
        return self.access_mode or (AccessMode.READ_WRITE_ONCE if num_nodes == 1 else AccessMode.READ_WRITE_MANY)


class CheckpointSpec(CheckpointPolicy):
    """When the full state is saved, where, under which key, and what is kept."""

    volume: Annotated[WorkVolume, Field(description="Where it is saved.")] = WorkVolume()


class SchedulingSpec(Model):
    """How the pods compete for nodes.  The queue is the label kueue.x-k8s.io/queue-name on the job itself."""

    priority_class_name: Annotated[
        DnsName | None, Field(description="PriorityClass of the pods; a change takes effect with the next attempt.")
    ] = None

    rules: ClassVar = (
        Rule(
            "!has(self.priorityClassName) || !self.priorityClassName.startsWith('system-')",
            "priorityClassName must not begin with system-: such pods evict those that the cluster runs on; "
            "name a PriorityClass for work",
            lambda self: not (self.priority_class_name or "").startswith("system-"),
        ),
    )


# All fields but suspend, runPolicy and scheduling.
IMMUTABLE: Final = (
    "trainer",
    "model",
    "data",
    "method",
    "optimization",
    "checkpoint",
    "network",
    "evaluation",
    "export",
)


def immutable(field: str) -> Rule:
    return Rule(
        f"has(self.{field}) == has(oldSelf.{field}) && (!has(self.{field}) || self.{field} == oldSelf.{field})",
        f"{field} is immutable: delete the job and create it again, or give the new one another name",
    )


class JobSpec(Model):
    """One training run, from private data to a sealed, evaluated, exported model."""

    suspend: Annotated[
        bool, Field(description="True: write a checkpoint and free the pods; false again: continue.")
    ] = False
    run_policy: Annotated[RunPolicy, Field(description="Limits on the run as a whole.")] = RunPolicy()
    trainer: Annotated[TrainerSpec, Field(description="Image and size of the run.")]
    model: Annotated[ModelSpec, Field(description="What is trained.")]
    data: Annotated[DataSpec, Field(description="What it is trained on.")]
    method: Annotated[MethodSpec, Field(description="How the weights are changed.")] = MethodSpec()
    optimization: Annotated[OptimizationSpec, Field(description="Optimizer, schedule and batch.")] = OptimizationSpec()
    checkpoint: Annotated[CheckpointSpec, Field(description="Saving, sealing and resuming.")] = CheckpointSpec()
    network: Annotated[NetworkSpec, Field(description="Network isolation.")] = NetworkSpec()
    scheduling: Annotated[SchedulingSpec, Field(description="Priority.")] = SchedulingSpec()
    evaluation: Annotated[EvaluationSpec, Field(description="Measuring the result.")] = EvaluationSpec()
    export: Annotated[ExportSpec, Field(description="The result.")] = ExportSpec()

    rules: ClassVar = (
        Rule(
            "self.optimization.globalBatchSize % (self.trainer.numNodes * self.trainer.numProcPerNode) == 0",
            "optimization.globalBatchSize must be a multiple of trainer.numNodes x trainer.numProcPerNode",
            lambda self: self.optimization.global_batch_size % self.trainer.world_size == 0,
        ),
        Rule(
            "has(self.checkpoint.encryption)"
            " || !((has(self.data.sealed) && self.data.sealed) || (has(self.export.sealed) && self.export.sealed))",
            "data.sealed and export.sealed need a key: give checkpoint.encryption.keyRef",
            lambda self: self.checkpoint.encryption is not None or not (self.data.sealed or self.export.sealed),
        ),
        Rule(
            "!self.export.formats.exists(f, f == 'Adapter') || self.method.type in ['LoRA', 'QLoRA']",
            "export.formats Adapter needs method.type LoRA or QLoRA",
            lambda self: "Adapter" not in self.export.formats or self.method.type in ADAPTED,
        ),
        Rule(
            "!has(self.model.adapter) || !self.export.formats.exists(f, f == 'Adapter')",
            "export.formats Adapter with model.adapter would be wrong on model.base alone: set export.formats: "
            "[Merged], or merge model.adapter into its base first",
            lambda self: self.model.adapter is None or "Adapter" not in self.export.formats,
        ),
        Rule(
            "!has(self.model.adapter) || self.data.format != 'Images'",
            "model.adapter is for models of language: with data.format Images drop it, and give model.base the merged "
            "model",
            lambda self: self.model.adapter is None or self.data.format != "Images",
        ),
        Rule(
            "!(self.method.type in ['LoRA', 'QLoRA']) || has(self.model.base)",
            "method.type LoRA and QLoRA need model.base: adapters on random weights learn nothing",
            lambda self: self.method.type not in ADAPTED or self.model.base is not None,
        ),
        Rule(
            "!has(self.method.frozenLayers) || has(self.model.base)",
            "method.frozenLayers needs model.base: layers that stay random have learned nothing",
            lambda self: self.method.frozen_layers is None or self.model.base is not None,
        ),
        Rule(
            "!has(self.optimization.dropout) || self.optimization.dropout == 0.0 || self.method.type == 'Full'",
            "optimization.dropout is for method.type Full: give adapters method.lora.dropout, or set method.type: Full",
            lambda self: not self.optimization.dropout or self.method.type is MethodType.FULL,
        ),
        Rule(
            "!has(self.evaluation.labels) || self.data.format == 'Instruction'",
            "evaluation.labels needs data.format Instruction: a label is the response to a prompt",
            lambda self: self.evaluation.labels is None or self.data.format == "Instruction",
        ),
        Rule(
            "self.data.format != 'Preference' || has(self.model.base)",
            "data.format Preference needs model.base: answers are preferred to those of a model that has learned",
            lambda self: self.data.format != "Preference" or self.model.base is not None,
        ),
        Rule(
            "!has(self.method.preference) || self.data.format == 'Preference'",
            "method.preference is only read with data.format Preference: set it, or drop method.preference",
            lambda self: self.method.preference is None or self.data.format == "Preference",
        ),
        Rule(
            "self.data.format != 'Preference' || self.optimization.labelSmoothing < 0.5",
            "optimization.labelSmoothing must be below 0.5 with data.format Preference: from there on rejected "
            "answers win",
            lambda self: self.data.format != "Preference" or self.optimization.label_smoothing < 0.5,
        ),
        Rule(
            "!has(self.method.preference) || self.method.preference.loss == 'DPO' "
            "|| self.optimization.labelSmoothing == 0.0",
            "optimization.labelSmoothing is of loss DPO: drop it, or set method.preference.loss: DPO",
            lambda self: (
                self.method.preference is None
                or self.method.preference.loss is PreferenceLoss.DPO
                or not self.optimization.label_smoothing
            ),
        ),
        Rule(
            "self.data.format != 'Preference' || self.optimization.strategy in ['DDP', 'FSDP']",
            "strategies ZeRO1 to ZeRO3 learn no preferences: set optimization.strategy: FSDP or DDP",
            lambda self: self.data.format != "Preference" or not self.optimization.strategy.zero_stage,
        ),
        Rule(
            "self.method.type != 'QLoRA' || self.optimization.strategy == 'DDP'",
            "no optimization.strategy but DDP trains beside the 4-bit weights of method.type QLoRA: set strategy: DDP",
            lambda self: self.optimization.strategy == "DDP" or self.method.type != "QLoRA",
        ),
        Rule(
            "!has(self.data.validationFraction) || self.data.validationFraction > 0.0"
            " || (!has(self.evaluation.labels) && !self.evaluation.requireImprovement"
            " && !has(self.optimization.earlyStopping) && self.optimization.schedule != 'Plateau')",
            "data.validationFraction: 0 leaves nothing to evaluate: drop evaluation.labels, "
            "evaluation.requireImprovement, optimization.earlyStopping and schedule Plateau, or hold something out",
            lambda self: self.data.validation_fraction != 0 or not self.needs_evaluation,
        ),
        Rule(
            "!has(self.model.architecture) || self.model.architecture.family != 'DeepSeekV3'"
            " || self.optimization.optimizer != 'Muon'",
            "optimization.optimizer Muon takes matrices, and model.architecture.family DeepSeekV3 keeps those of "
            "experts in stacks: set optimizer: AdamW",
            lambda self: (
                self.model.architecture is None
                or self.model.architecture.family != "DeepSeekV3"
                or self.optimization.optimizer != "Muon"
            ),
        ),
        *DORA_RULES,
        *JOB_RULES,
        *KEY_SERVER_RULES,
        *(immutable(field) for field in IMMUTABLE),
    )

    @property
    def needs_evaluation(self) -> bool:
        """Whether something of the job waits for a validation loss."""
        asked = self.evaluation.labels is not None or self.evaluation.require_improvement
        optimization = self.optimization
        return asked or optimization.early_stopping is not None or optimization.schedule is Schedule.PLATEAU

    def training_config(self, namespace: str, name: str) -> TrainingConfig:
        """The config.json for the trainer of this job."""
        return TrainingConfig(
            job=JobIdentity(namespace=namespace, name=name),
            num_nodes=self.trainer.num_nodes,
            num_proc_per_node=self.trainer.num_proc_per_node,
            model=self.model,
            data=self.data,
            method=self.method,
            optimization=self.optimization,
            checkpoint=CheckpointPolicy.model_validate(self.checkpoint.model_dump(by_alias=True)),
            evaluation=self.evaluation,
            export=self.export,
        )
