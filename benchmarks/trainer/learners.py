"""The learner of a causal language model, as a run makes it, without a job's prepared data."""

from torch import nn

from deepseek_trainer.contract.optimization import OptimizationSpec
from deepseek_trainer.model.dropout import drop_out
from deepseek_trainer.model.precision import autocast
from deepseek_trainer.model.recompute import recompute_activations
from deepseek_trainer.tasks.language.loss import CausalLoss
from deepseek_trainer.training.learner import Learner
from deepseek_trainer.training.strategies import learner_of
from deepseek_trainer.worker.distributed import World


def a_learner(model: nn.Module, optimization: OptimizationSpec, world: World) -> Learner:
    drop_out(model, optimization.dropout)
    recompute_activations(model, optimization.recompute)
    loss = CausalLoss(model, autocast(optimization.precision, world.device), optimization)
    return learner_of(loss, optimization, world)
