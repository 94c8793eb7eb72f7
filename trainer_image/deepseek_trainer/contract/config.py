"""The parts of a job that the trainer reads, and the file in which it reads them.

The same models make the CRD's schema, the messages of `dstj validate` and the trainer's
config.json, so that the three cannot disagree.
"""

from typing import Annotated, Self

from deepseek_trainer.contract.checkpoint import CheckpointPolicy
from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.evaluation import EvaluationSpec
from deepseek_trainer.contract.export import ExportSpec
from deepseek_trainer.contract.method import MethodSpec, MethodType, PreferenceSpec
from deepseek_trainer.contract.model import ModelSpec
from deepseek_trainer.contract.optimization import OptimizationSpec, Optimizer, Strategy
from deepseek_trainer.contract.rates import default_rate
from deepseek_trainer.contract.rules import FREE, Model


class JobIdentity(Model):
    """Which job this is."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class TrainingConfig(Model):
    """config.json: all that the trainer needs to know, the same for every attempt and every worker."""

    job: Annotated[JobIdentity, FREE]
    num_nodes: Annotated[int, FREE]
    num_proc_per_node: Annotated[int, FREE]
    model: ModelSpec
    data: DataSpec
    method: MethodSpec
    optimization: OptimizationSpec
    checkpoint: Annotated[CheckpointPolicy, FREE]
    evaluation: Annotated[EvaluationSpec, FREE]
    export: Annotated[ExportSpec, FREE]

    @property
    def world_size(self) -> int:
        return self.num_nodes * self.num_proc_per_node

    def settled(self, records: int) -> Self:
        """This config, with what Auto and the default learning rate stand for, for `records` training records.

        Where Auto comes to Full, the strategy becomes FSDP, if there are several ranks and the optimizer is AdamW, the
        only one that can be sharded.  A strategy that shards already stays.
        """
        now, method = self.with_rate(records).optimization, self._method(records)
        is_chosen = self.method.type is MethodType.AUTO and method.type is MethodType.FULL
        is_whole = now.strategy is Strategy.DDP and now.optimizer is Optimizer.ADAMW
        if is_chosen and is_whole and self.world_size > 1:
            now = now.model_copy(update={"strategy": Strategy.FSDP})
        return self.model_copy(update={"method": method, "optimization": now})

    def with_rate(self, records: int) -> Self:
        """This config, with the learning rate of its method for `records` training records where it gives none."""
        if self.optimization.learning_rate is not None:
            return self
        adapters = self._method(records).type is not MethodType.FULL
        rate = default_rate(adapters=adapters, preference=self.preference.loss if self.preference else None)
        return self.model_copy(update={"optimization": self.optimization.model_copy(update={"learning_rate": rate})})

    def _method(self, records: int) -> MethodSpec:
        return self.method.settled(records, has_base=self.model.base is not None)

    @property
    def preference(self) -> PreferenceSpec | None:
        """How pairs of answers are learned; None if the data are not pairs."""
        return (self.method.preference or PreferenceSpec()) if self.data.format is DataFormat.PREFERENCE else None

    @property
    def has_reference(self) -> bool:
        """Whether what is learned is held against the model before training."""
        return self.preference is not None and self.preference.has_reference

    @property
    def seals_checkpoints(self) -> bool:
        return self.checkpoint.encryption is not None

    @property
    def is_private(self) -> bool:
        """Whether messages name places in the data only, and nothing that stands there."""
        return self.seals_checkpoints or self.seals_data

    @property
    def seals_data(self) -> bool:
        return self.seals_checkpoints if self.data.sealed is None else self.data.sealed

    @property
    def seals_export(self) -> bool:
        return self.seals_checkpoints if self.export.sealed is None else self.export.sealed
