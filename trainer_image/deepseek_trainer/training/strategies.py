"""Chooses a job's learner, by the strategy that spreads its model over the ranks."""

from typing import Any

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model.loss import Loss
from deepseek_trainer.training.learner import Learner
from deepseek_trainer.training.torch_learner import TorchLearner
from deepseek_trainer.worker.distributed import World


def learner_of(loss: Loss[Any], optimization: OptimizationSpec, world: World) -> Learner:
    """The learner of `loss`, whose model is not trained yet."""
    if not optimization.strategy.zero_stage:
        return TorchLearner(loss, optimization, world)
    from deepseek_trainer.training.zero_learner import ZeroLearner  # noqa: PLC0415 not every image has DeepSpeed

    return ZeroLearner(loss, optimization, world)
