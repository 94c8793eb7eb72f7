"""The parts of a job that the trainer reads, and the file in which it reads them.

The same models make the CRD's schema, the messages of `dstj validate` and the trainer's
config.json, so that the three cannot disagree.
"""

from deepseek_trainer.contract.checkpoint import CheckpointPolicy
from deepseek_trainer.contract.data import DataFormat, DataSpec
from deepseek_trainer.contract.evaluation import EvaluationSpec
from deepseek_trainer.contract.export import ExportSpec
from deepseek_trainer.contract.method import MethodSpec, PreferenceSpec
from deepseek_trainer.contract.model import ModelSpec
from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.contract.rules import Model


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
    def preference(self) -> PreferenceSpec | None:
        """How pairs of answers are learned; None where the data are no pairs."""
        return (self.method.preference or PreferenceSpec()) if self.data.format is DataFormat.PREFERENCE else None

    @property
    def seals_checkpoints(self) -> bool:
        return self.checkpoint.encryption is not None

    @property
    def seals_data(self) -> bool:
        return self.seals_checkpoints if self.data.sealed is None else self.data.sealed

    @property
    def seals_export(self) -> bool:
        return self.seals_checkpoints if self.export.sealed is None else self.export.sealed
