"""One rank of a job: what every part of its run needs to know."""

import os
from dataclasses import dataclass
from typing import Any

from deepseek_trainer.budget.dimensions import Dimensions
from deepseek_trainer.budget.ladder import climbed
from deepseek_trainer.checkpoints.legs import LEGS, Leg
from deepseek_trainer.checkpoints.store import CheckpointStore
from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.method import MethodSpec
from deepseek_trainer.contract.names import ENV_RUN_ID, Paths
from deepseek_trainer.data.dataset import Prepared
from deepseek_trainer.tasks.task import Task
from deepseek_trainer.worker.distributed import World
from deepseek_trainer.worker.process import ProfileFlag, StopFlag
from deepseek_trainer.worker.training_config import config_digest

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rank:
    """How the rank was started, and how far up the ladder it is."""

    requested: TrainingConfig  # the job as its file has it, with the default learning rate of its method
    paths: Paths
    world: World
    stop: StopFlag
    profile: ProfileFlag
    task: Task[Any]
    prepared: Prepared[Any]
    store: CheckpointStore
    base_digest: str | None  # of the base model; None from scratch
    dimensions: Dimensions | None  # of the model, from which memory and FLOPs follow; None if they are not known
    least_rungs: int = 0  # the first rung on which weights, gradients and moments fit on every rank
    rungs: int = 0  # the rung that all ranks are on
    legs: tuple[Leg, ...] = ()  # of the run, this one's last

    @property
    def resolved(self) -> TrainingConfig:
        """The job with what Auto stands for.

        The same on every rank and attempt: the records were counted when the data were prepared.
        """
        return self.requested.settled(self.prepared.counts["train"].records)

    @property
    def fitted(self) -> TrainingConfig:
        """The resolved job on its rung: as it is done in the memory that there is."""
        return climbed(self.resolved, self.rungs)

    @property
    def origin(self) -> Json:
        """What a checkpoint records about the job that wrote it."""
        digests = {"configDigest": config_digest(self.requested), "baseDigest": self.base_digest}
        return {"jobUid": job_uid(), **digests, "rungs": self.rungs, LEGS: [leg.to_json() for leg in self.legs]}

    @property
    def method(self) -> MethodSpec:
        return self.fitted.method

    @property
    def learns_beside_base(self) -> bool:
        """Whether what is trained needs the same base model beside it: for frozen weights, or as the reference."""
        return not self.method.trains_all or self.fitted.has_reference


def job_uid() -> str:
    return os.environ[ENV_RUN_ID].rpartition("-")[0]


def attempt() -> int:
    return int(os.environ[ENV_RUN_ID].rpartition("-")[2])
