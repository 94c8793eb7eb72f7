"""What a task is: the seam between what a job teaches and all code that does not depend on that.

A task turns rows into batches.  It supplies the model, the loss, the assessment and the files that an export needs
beside the weights.  The loop, the learner, the order of the data and the checkpoints know no task by name; `tasks.of`
chooses one.  Its `data.preparer.Preparer` turns records into rows, in the pod's init container and without torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.data.batch import Batch
from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.data.draws import Draws, RowArray
from deepseek_trainer.data.shards import SplitCounts
from deepseek_trainer.model.loss import Loss

Json = dict[str, Any]
B = TypeVar("B", bound=Batch)
I = TypeVar("I")  # noqa: E741  an item that the model is asked about
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Assessment:
    """What a model can do: numbers by name, and texts that it wrote."""

    scores: Json = field(default_factory=dict)
    answers: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to a held-out prompt before and after training."""

    prompt: str
    reference: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Usage:
    """What the model card says about a task's models."""

    pipeline: str  # as model hubs call the task
    auto_class: str  # of transformers, which loads the model
    limits: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)  # beside those of the optimization
    loss_unit: str = "token"


class Ask(Protocol):
    """Lets a task ask the model that is trained, over all ranks."""

    @property
    def rows(self) -> Rows[Any]:
        """The held-out rows."""

    @property
    def batch_size(self) -> int:
        """For how many rows of a forward pass there is memory."""

    def over(self, items: Sequence[I], at_once: int, ask: Callable[[nn.Module, Sequence[I]], list[T]]) -> list[T]:
        """The results of `ask` for all items, in order, on every rank.  Each rank asks its share, `at_once` at a time.

        Collective.  Raises StopRequested on a stop, for which it looks between batches.
        """

    def event(self, event: str, **numbers: Any) -> None:
        """Emit an event of the run."""


class Task(ABC, Generic[B]):
    """The task of one job on one rank, with its prepared data."""

    unit: ClassVar[str]  # of `Batch.size`: "tokens", "images"
    rows_are_sorted: ClassVar[bool] = False  # whether the first of the rows are unlike the last

    @property
    @abstractmethod
    def usage(self) -> Usage:
        """What the model card says about the model."""

    @abstractmethod
    def dtype(self, facts: Json) -> np.dtype[np.void]:
        """The dtype of a row, given the facts in the manifest."""

    @abstractmethod
    def collate(self, rows: RowArray, draws: Draws | None) -> B:
        """The batch of `rows`.  `draws` are for augmentation and dropout; None where nothing is trained."""

    def records_of_row(self, counts: SplitCounts) -> float:
        """How many records of a class one of its rows holds, on average."""
        return (counts.records - counts.dropped) / counts.rows

    @abstractmethod
    def model(self) -> PreTrainedModel:
        """The model before training, on the CPU in FP32, in training mode, without adapters; the same on every rank."""

    @abstractmethod
    def loss(self, model: nn.Module, autocast: torch.autocast, optimization: OptimizationSpec) -> Loss[B]:
        """The loss by which `model`, not trained yet, learns."""

    @abstractmethod
    def assess(self, ask: Ask) -> Assessment:
        """What the model can do, beside its loss.  Asked before and after training.  Collective."""

    def samples(self, before: Sequence[str], after: Sequence[str]) -> Sequence[Answer]:  # noqa: ARG002
        """The answers of both assessments side by side, for the report."""
        return ()

    @abstractmethod
    def companions(self, model: PreTrainedModel, dtype: str) -> dict[str, bytes]:
        """The files beside an export's weights, by name, with which plain transformers loads it.

        `dtype`: what most weights are stored in, as config.json names it.
        """
