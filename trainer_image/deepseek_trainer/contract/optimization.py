"""Optimizer, schedule, batch, and what guards them."""

from enum import StrEnum
from typing import Annotated, ClassVar, Final

from pydantic import Field, PlainSerializer
from pydantic.alias_generators import to_snake

from deepseek_trainer.contract.rates import described_rates
from deepseek_trainer.contract.rules import FREE, Model, Rule

WARMUP_STEPS: Final = 100  # if the job says nothing, and at most a tenth of the run
LOGITS_BYTES: Final = 1 << 28  # of logits that are made at once, in fp32


class Precision(StrEnum):
    AUTO = "Auto"
    BF16 = "BF16"
    FP16 = "FP16"
    FP32 = "FP32"


class Schedule(StrEnum):
    COSINE = "Cosine"
    LINEAR = "Linear"
    COSINE_RESTARTS = "CosineRestarts"
    WSD = "WSD"
    PLATEAU = "Plateau"
    CONSTANT = "Constant"


class Optimizer(StrEnum):
    ADAMW = "AdamW"
    ADAMW_8BIT = "AdamW8bit"
    MUON = "Muon"


class Strategy(StrEnum):
    DDP = "DDP"
    FSDP = "FSDP"
    ZERO1 = "ZeRO1"
    ZERO2 = "ZeRO2"
    ZERO3 = "ZeRO3"

    @property
    def zero_stage(self) -> int:
        """The stage of DeepSpeed's ZeRO; 0 for a strategy without DeepSpeed."""
        return {Strategy.ZERO1: 1, Strategy.ZERO2: 2, Strategy.ZERO3: 3}.get(self, 0)


class Recompute(StrEnum):
    NONE = "None"
    SELECTIVE = "Selective"
    FULL = "Full"


class OnOutOfMemory(StrEnum):
    ADAPT = "Adapt"
    FAIL = "Fail"


class EarlyStopping(Model):
    """Stop when the validation loss no longer falls."""

    patience: Annotated[
        int, Field(ge=1, le=1000, description="Evaluations without a new best loss before stopping.")
    ] = 3


class Guard(Model):
    """What happens to a step whose gradient is not finite, or far above the usual: it changes no weight."""

    max_skips: Annotated[
        int, Field(ge=0, le=1000, description="Such steps in a row that are skipped; one more rolls back.")
    ] = 3
    max_rollbacks: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="Returns to the last checkpoint, each with half the learning rate and the data that follow; "
            "after them the job fails.",
        ),
    ] = 2
    spike_factor: Annotated[
        float | None,
        Field(gt=1, description="A gradient norm so many times its running mean is a spike. Default: none is."),
    ] = None


def only_with(field: str, default: float, schedule: Schedule) -> Rule:
    """The rule that a setting of one schedule is not given with another, which would not read it."""
    name = to_snake(field)
    return Rule(
        f"!has(self.{field}) || self.{field} == {default} || (has(self.schedule) && self.schedule == '{schedule}')",
        f"{field} is only read with schedule {schedule}: set it, or drop {field}",
        lambda self: getattr(self, name) == default or self.schedule is schedule,
    )


class OptimizationSpec(Model):
    """Optimizer and schedule.  Batches count rows of data.sequenceLength tokens over all processes."""

    epochs: Annotated[
        float | None,
        Field(
            gt=0,
            le=100000,
            description="Passes over the data, also a part of one: 0.5. Default 3 without maxSteps, maxMinutes.",
        ),
        PlainSerializer(lambda value: int(value) if value is not None and value == int(value) else value),
    ] = None
    max_steps: Annotated[int | None, Field(ge=1, description="Optimizer steps, instead of epochs.")] = None
    max_minutes: Annotated[
        float | None,
        Field(gt=0, le=525600, description="Time for training steps, over all attempts; the schedule ends with it."),
    ] = None
    global_batch_size: Annotated[
        int, Field(ge=1, le=1048576, description="Rows per optimizer step; a multiple of numNodes x numProcPerNode.")
    ] = 32
    micro_batch_size: Annotated[
        int,
        Field(ge=1, le=65536, description="At most so many rows in one forward pass; the rest is accumulated."),
        FREE,
    ] = 8
    strategy: Annotated[
        Strategy,
        Field(
            description="DDP: each process has all weights. FSDP: weights, gradients and moments are sharded. By "
            "DeepSpeed: ZeRO1 shards moments, ZeRO2 gradients, too, ZeRO3 weights, too."
        ),
        FREE,
    ] = Strategy.DDP
    offload: Annotated[
        bool,
        Field(
            description="With FSDP: shards of weights, gradients and moments are in the host's memory, where the "
            "optimizer's steps are taken; a GPU has the layers that compute and their activations."
        ),
        FREE,
    ] = False
    optimizer: Annotated[
        Optimizer,
        Field(
            description="AdamW; AdamW8bit: its moments in 8 bits; Muon: for the decoder's matrices, AdamW for the rest."
        ),
    ] = Optimizer.ADAMW
    learning_rate: Annotated[
        float | None,
        Field(gt=0, le=10, description=f"Peak learning rate. Default by method: {described_rates()}."),
    ] = None
    weight_decay: Annotated[float, Field(ge=0, le=1, description="Decoupled decay of weight matrices.")] = 0.01
    warmup_steps: Annotated[
        int | None,
        Field(
            ge=0,
            description=f"Steps of linear warm-up, at most all. Default without warmupFraction: {WARMUP_STEPS}, and at "
            "most a tenth of the steps.",
        ),
    ] = None
    warmup_fraction: Annotated[
        float | None, Field(ge=0, le=1, description="Share of the run with linear warm-up, instead of warmupSteps.")
    ] = None
    schedule: Annotated[
        Schedule,
        Field(
            description="After warm-up: Cosine to a tenth of the peak; Linear to zero; CosineRestarts: cycles of "
            "Cosine; WSD: the peak, then linearly to zero; Plateau: half whenever the validation loss stalls; Constant."
        ),
    ] = Schedule.COSINE
    cycles: Annotated[int, Field(ge=2, le=1000, description="Cycles of CosineRestarts, equally long.")] = 4
    decay_fraction: Annotated[float, Field(gt=0, le=1, description="Share of the run in which WSD decays.")] = 0.2
    plateau_patience: Annotated[
        int, Field(ge=1, le=1000, description="Evaluations without a new best loss before Plateau halves the rate.")
    ] = 2
    max_grad_norm: Annotated[float, Field(gt=0, description="Gradients are clipped to this global norm.")] = 1.0
    label_smoothing: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Share of each target that is spread over the vocabulary; of DPO, "
            "the share of pairs that are taken for wrongly ordered, below 0.5.",
        ),
    ] = 0.0
    dropout: Annotated[
        float,
        Field(
            ge=0,
            lt=1,
            description="Dropout on the embeddings and on what each attention and feed-forward adds to them, while "
            "training; only with method.type Full, adapters have their own.",
        ),
    ] = 0.0
    ema_decay: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="Evaluate and export a moving average of the weights with this decay, with less of it in the "
            "first steps. Default: no.",
        ),
    ] = None
    precision: Annotated[
        Precision,
        Field(description="Of the computation; weights are FP32. Auto: BF16 on a GPU that has it, else FP32."),
    ] = Precision.AUTO
    recompute: Annotated[
        Recompute,
        Field(
            description="Activations that the backward pass computes again, to save memory. Full: all inside a decoder "
            "layer. Selective: all but the results of matrix products."
        ),
        FREE,
    ] = Recompute.NONE
    logits_mebibytes: Annotated[
        int,
        Field(
            ge=1,
            le=65536,
            description="Logits (FP32) that the loss makes at once; those of more positions a part after the other.",
        ),
        FREE,
    ] = LOGITS_BYTES >> 20
    on_out_of_memory: Annotated[
        OnOutOfMemory,
        Field(
            description="Adapt: go on with a smaller micro-batch, then more recompute, then smaller parts of the "
            "loss, then more shards, then offload, at the same global batch; where AdamW cannot be sharded, at last "
            "with AdamW8bit. Fail: the attempt fails at once."
        ),
        FREE,
    ] = OnOutOfMemory.ADAPT
    compile: Annotated[bool, Field(description="Compile the decoder with torch.compile; needs a C compiler."), FREE] = (
        False
    )
    guard: Annotated[Guard, Field(description="Steps that change no weight.")] = Guard()
    early_stopping: Annotated[EarlyStopping | None, Field(description="Default: run to the end.")] = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1, description="Seed of initial weights, data order and dropout.")] = 0

    @property
    def logits_bytes(self) -> int:
        return self.logits_mebibytes << 20

    @property
    def peak_rate(self) -> float:
        """The peak learning rate of a job whose default is settled."""
        assert self.learning_rate is not None, "settled before anything is trained"
        return self.learning_rate

    rules: ClassVar = (
        Rule(
            "!(has(self.epochs) && has(self.maxSteps))",
            "give epochs or maxSteps, not both",
            lambda self: self.epochs is None or self.max_steps is None,
        ),
        Rule(
            "!(has(self.warmupSteps) && has(self.warmupFraction))",
            "give warmupSteps or warmupFraction, not both",
            lambda self: self.warmup_steps is None or self.warmup_fraction is None,
        ),
        *(
            only_with(field, default, schedule)
            for field, default, schedule in (
                ("cycles", 4, Schedule.COSINE_RESTARTS),
                ("decayFraction", 0.2, Schedule.WSD),
                ("plateauPatience", 2, Schedule.PLATEAU),
            )
        ),
        Rule(
            "!has(self.strategy) || self.strategy == 'DDP' || !has(self.optimizer) || self.optimizer == 'AdamW'",
            "strategies other than DDP shard AdamW only: set optimizer: AdamW or strategy: DDP",
            lambda self: self.strategy is Strategy.DDP or self.optimizer is Optimizer.ADAMW,
        ),
        Rule(
            "!has(self.offload) || !self.offload || (has(self.strategy) && self.strategy == 'FSDP')",
            "offload is of FSDP's shards only: set strategy: FSDP or drop offload",
            lambda self: not self.offload or self.strategy is Strategy.FSDP,
        ),
        Rule(
            "!has(self.emaDecay) || !has(self.strategy) || self.strategy in ['DDP', 'FSDP']",
            "strategies ZeRO1 to ZeRO3 keep no average of the weights: drop emaDecay or set strategy: FSDP",
            lambda self: not self.strategy.zero_stage or self.ema_decay is None,
        ),
        Rule(
            "!has(self.compile) || !self.compile || !has(self.strategy) || self.strategy in ['DDP', 'FSDP']",
            "strategies ZeRO1 to ZeRO3 do not compile: drop compile or set strategy: FSDP",
            lambda self: not self.strategy.zero_stage or not self.compile,
        ),
    )
