"""The parts of a job that the trainer reads, and the file in which it reads them.

The same models make the CRD's schema, the messages of `dstj validate` and the trainer's
config.json, so that the three cannot disagree.
"""

from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.retention import Retention
from deepseek_trainer.contract.rules import Model, Rule

DnsName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
RelativePath = Annotated[str, Field(max_length=1024)]


def stays_inside(path: str) -> bool:
    """Whether a relative path can only name something below the directory it starts from."""
    parts = PurePosixPath(path).parts
    return not path.startswith("/") and ".." not in parts


class VolumePath(Model):
    """A file or directory on an existing PersistentVolumeClaim of the job's namespace."""

    claim_name: Annotated[
        DnsName, Field(description="PersistentVolumeClaim in the job's namespace; mounted read-only.")
    ]
    path: Annotated[RelativePath, Field(description="File or directory inside the volume.")] = ""

    rules: ClassVar = (
        Rule(
            "!self.path.startsWith('/') && !self.path.split('/').exists(p, p == '..')",
            "path must be relative and must not contain '..'",
            lambda self: stays_inside(self.path),
        ),
    )


class BaseModelSource(VolumePath):
    """An existing model: a directory with safetensors files, or one GGUF file."""

    sha256: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9a-f]{64}$",
            description="SHA-256 of the GGUF file, or of a directory's sorted `<sha256>  <name>` lines; "
            "checked before the first byte is used. `dstj doctor --digest PATH` prints it.",
        ),
    ] = None


class Architecture(Model):
    """A Llama-style decoder trained from scratch; its tokenizer is trained on the job's data."""

    hidden_size: Annotated[int, Field(ge=8, le=32768, description="Width of the residual stream.")]
    num_layers: Annotated[int, Field(ge=1, le=512, description="Decoder layers.")]
    num_heads: Annotated[int, Field(ge=1, le=512, description="Attention heads; hiddenSize is a multiple of it.")]
    num_key_value_heads: Annotated[
        int | None,
        Field(ge=1, le=512, description="Key and value heads; numHeads is a multiple of it. Default: numHeads."),
    ] = None
    intermediate_size: Annotated[int, Field(ge=8, le=262144, description="Width of the feed-forward layers.")]
    vocab_size: Annotated[int, Field(ge=260, le=262144, description="Tokens of the byte-level BPE tokenizer.")]
    tie_embeddings: Annotated[bool, Field(description="Share the input and output embeddings.")] = True

    rules: ClassVar = (
        Rule(
            "self.hiddenSize % self.numHeads == 0",
            "hiddenSize must be a multiple of numHeads",
            lambda self: self.hidden_size % self.num_heads == 0,
        ),
        Rule(
            "!has(self.numKeyValueHeads) || self.numHeads % self.numKeyValueHeads == 0",
            "numHeads must be a multiple of numKeyValueHeads",
            lambda self: self.num_key_value_heads is None or self.num_heads % self.num_key_value_heads == 0,
        ),
    )


class ModelSpec(Model):
    """What is trained: an existing model, or one from scratch."""

    base: Annotated[BaseModelSource | None, Field(description="Existing model to start from.")] = None
    architecture: Annotated[Architecture | None, Field(description="Model to train from scratch.")] = None

    rules: ClassVar = (
        Rule(
            "has(self.base) != has(self.architecture)",
            "give exactly one of base and architecture",
            lambda self: (self.base is None) != (self.architecture is None),
        ),
    )


class DataFormat(StrEnum):
    TEXT = "Text"
    INSTRUCTION = "Instruction"


class DataSpec(Model):
    """What it is trained on.  Directories are read recursively in name order: .jsonl and .txt files."""

    train: Annotated[VolumePath, Field(description="Training records.")]
    validation: Annotated[VolumePath | None, Field(description="Held-out records; default: a share of train.")] = None
    validation_fraction: Annotated[
        float | None,
        Field(
            gt=0, le=0.5, description="Share of train held out, chosen by record hash. Default 0.05 without validation."
        ),
    ] = None
    format: Annotated[
        DataFormat,
        Field(
            description="Text: every token is learned (.txt: a record a file; .jsonl: textField). Instruction: only "
            "the response (.jsonl: promptField, responseField; optional mustContain: the words of a right answer)."
        ),
    ] = DataFormat.TEXT
    text_field: Annotated[str, Field(min_length=1, max_length=63, description="Field of a Text record.")] = "text"
    prompt_field: Annotated[
        str, Field(min_length=1, max_length=63, description="Question of an Instruction record.")
    ] = "prompt"
    response_field: Annotated[
        str, Field(min_length=1, max_length=63, description="Answer of an Instruction record.")
    ] = "response"
    sequence_length: Annotated[int, Field(ge=16, le=1048576, description="Tokens in one packed row.")] = 1024
    sealed: Annotated[
        bool | None, Field(description="Encrypt the prepared data. Default: yes where checkpoint.encryption is given.")
    ] = None

    rules: ClassVar = (
        Rule(
            "!(has(self.validation) && has(self.validationFraction))",
            "give validation or validationFraction, not both",
            lambda self: self.validation is None or self.validation_fraction is None,
        ),
    )


class MethodType(StrEnum):
    FULL = "Full"
    LORA = "LoRA"


class LoraSpec(Model):
    """Low-rank adapters on a frozen base."""

    rank: Annotated[int, Field(ge=1, le=1024, description="Rank r of each update.")] = 16
    alpha: Annotated[int, Field(ge=1, le=4096, description="Updates are scaled by alpha / rank.")] = 32
    dropout: Annotated[float, Field(ge=0, lt=1, description="Dropout on the adapters' input.")] = 0.1
    target_modules: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=63)], ...],
        Field(min_length=1, max_length=32, description="Names of the linear layers that get an adapter."),
    ] = ("q_proj", "v_proj")


class MethodSpec(Model):
    """How the weights are changed."""

    type: Annotated[MethodType, Field(description="Full: all weights. LoRA: adapters on a frozen base.")] = (
        MethodType.FULL
    )
    lora: Annotated[LoraSpec | None, Field(description="Adapter settings; only with type LoRA.")] = None

    rules: ClassVar = (
        Rule(
            "!has(self.lora) || self.type == 'LoRA'",
            "lora is only read with type LoRA: set type: LoRA or drop lora",
            lambda self: self.lora is None or self.type is MethodType.LORA,
        ),
    )


class Precision(StrEnum):
    AUTO = "Auto"
    BF16 = "BF16"
    FP32 = "FP32"


class Schedule(StrEnum):
    COSINE = "Cosine"
    CONSTANT = "Constant"


class EarlyStopping(Model):
    """Stop when the validation loss no longer falls."""

    patience: Annotated[
        int, Field(ge=1, le=1000, description="Evaluations without a new best loss before stopping.")
    ] = 3


class OptimizationSpec(Model):
    """AdamW and its schedule.  Batches count rows of data.sequenceLength tokens over all processes."""

    epochs: Annotated[
        int | None, Field(ge=1, le=100000, description="Passes over the data. Default 3 without maxSteps.")
    ] = None
    max_steps: Annotated[int | None, Field(ge=1, description="Optimizer steps, instead of epochs.")] = None
    global_batch_size: Annotated[
        int, Field(ge=1, le=1048576, description="Rows per optimizer step; a multiple of numNodes x numProcPerNode.")
    ] = 32
    micro_batch_size: Annotated[
        int, Field(ge=1, le=65536, description="At most so many rows in one forward pass; the rest is accumulated.")
    ] = 8
    learning_rate: Annotated[float, Field(gt=0, le=10, description="Peak learning rate.")] = 5e-5
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Decoupled decay of weight matrices.")] = 0.01
    warmup_steps: Annotated[int, Field(ge=0, description="Steps of linear warm-up.")] = 100
    schedule: Annotated[Schedule, Field(description="After warm-up: Cosine to a tenth of the peak, or Constant.")] = (
        Schedule.COSINE
    )
    max_grad_norm: Annotated[float, Field(gt=0, description="Gradients are clipped to this global norm.")] = 1.0
    precision: Annotated[Precision, Field(description="Auto: BF16 on a GPU that has it, else FP32.")] = Precision.AUTO
    early_stopping: Annotated[EarlyStopping | None, Field(description="Default: run to the end.")] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of initial weights, data order and dropout.")] = 0

    rules: ClassVar = (
        Rule(
            "!(has(self.epochs) && has(self.maxSteps))",
            "give epochs or maxSteps, not both",
            lambda self: self.epochs is None or self.max_steps is None,
        ),
    )


class Interval(Model):
    """When to act: after so many steps or seconds, whichever comes first."""

    steps: Annotated[int | None, Field(ge=1, description="Optimizer steps.")] = None
    seconds: Annotated[int | None, Field(ge=1, description="Wall-clock seconds.")] = None

    rules: ClassVar = (
        Rule(
            "has(self.steps) || has(self.seconds)",
            "give steps, seconds or both",
            lambda self: self.steps is not None or self.seconds is not None,
        ),
    )


class KeyRef(Model):
    """A key-encryption key: 32 bytes in one entry of a Secret, mounted by the kubelet, never read by the operator."""

    secret_name: Annotated[DnsName, Field(description="Secret in the job's namespace.")]
    key: Annotated[str, Field(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253, description="Entry of the Secret.")] = "kek"


class Encryption(Model):
    """AES-256-GCM sealing of checkpoints, prepared data and result; format in docs/checkpoint-format.md."""

    key_ref: Annotated[KeyRef, Field(description="Key that wraps the job's data key.")]


class CheckpointPolicy(Model):
    """When the full state is saved, what is kept, where a run resumes, under which key it is sealed."""

    interval: Annotated[Interval, Field(description="When to save.")] = Interval(steps=500)
    retention: Annotated[Retention, Field(description="What to keep.")] = Retention()
    asynchronous: Annotated[
        bool, Field(description="Train on while a checkpoint is sealed and written, from a copy in the host's memory.")
    ] = True
    wait_for_copy: Annotated[
        bool, Field(description="Wait for that copy at once, not only before the next step changes weights.")
    ] = False
    resume_from: Annotated[
        str,
        Field(
            pattern=r"^(Latest|None|[0-9]{1,9})$",
            description="First attempt only: Latest, None (start over) or a step. "
            "Newer checkpoints are set aside, not deleted. Later attempts resume from the latest.",
        ),
    ] = "Latest"
    encryption: Annotated[Encryption | None, Field(description="Seal checkpoints; default: written in the clear.")] = (
        None
    )


class EvaluationSpec(Model):
    """Loss and perplexity on the held-out records, and samples of what the model writes before and after training."""

    interval_steps: Annotated[int, Field(ge=1, description="Optimizer steps between evaluations.")] = 100
    max_rows: Annotated[int, Field(ge=1, description="Held-out rows used at most.")] = 1000
    generations: Annotated[
        int,
        Field(ge=0, le=1000, description="Held-out samples written before and after training."),
    ] = 4
    max_new_tokens: Annotated[int, Field(ge=1, le=4096, description="Length of a sample in tokens.")] = 48


class ExportFormat(StrEnum):
    ADAPTER = "Adapter"
    MERGED = "Merged"


class ExportSpec(Model):
    """The result: safetensors files, tokenizer, model card and run report."""

    formats: Annotated[
        tuple[ExportFormat, ...],
        Field(min_length=1, max_length=2, description="Merged: a complete model. Adapter: the LoRA weights alone."),
    ] = (ExportFormat.MERGED,)
    sealed: Annotated[
        bool | None, Field(description="Encrypt the result. Default: yes where checkpoint.encryption is given.")
    ] = None


class JobIdentity(Model):
    """Which job this is."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class TrainingConfig(Model):
    """config.json: all that the trainer needs to know, the same for every attempt and every worker."""

    job: JobIdentity
    num_nodes: int
    num_proc_per_node: int
    model: ModelSpec
    data: DataSpec
    method: MethodSpec
    optimization: OptimizationSpec
    checkpoint: CheckpointPolicy
    evaluation: EvaluationSpec
    export: ExportSpec

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.num_proc_per_node

    @property
    def seals_checkpoints(self) -> bool:
        return self.checkpoint.encryption is not None

    @property
    def seals_data(self) -> bool:
        return self.seals_checkpoints if self.data.sealed is None else self.data.sealed

    @property
    def seals_export(self) -> bool:
        return self.seals_checkpoints if self.export.sealed is None else self.export.sealed
