"""Optimizer, schedule and batch."""

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field

from deepseek_trainer.contract.rules import Model, Rule


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
