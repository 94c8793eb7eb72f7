"""Whether a run came to anything: what ends it before the first step, and what may end it without a result."""

import math

from deepseek_trainer.contract.errors import ConfigError, NotFiniteError, NotImprovedError
from deepseek_trainer.contract.findings import improvement
from deepseek_trainer.run.rank import Json, Rank
from deepseek_trainer.training.loop import Loop
from deepseek_trainer.training.state import RunState


def refuse_unmeasurable(loss: float, loop: Loop) -> None:
    """Raise ConfigError where the model before training has no finite loss: no step can mend that."""
    if loop.state.step == 0 and not math.isfinite(loss):
        raise ConfigError(
            f"the held-out loss of the untrained model is {loss}, though its weights are finite",
            hint="its activations overflow: set optimization.precision: FP32, or take another base model",
        )


def praise(state: RunState) -> str:
    """What the best step of a run has before others."""
    before = initial_loss(state)
    rose = before is not None and state.best_loss > before
    return "whose validation loss rose least" if rose else "with the lowest validation loss"


def initial_loss(state: RunState) -> float | None:
    """The held-out loss of the model before training; None where it was not measured."""
    loss: float | None = state.before.get("scores", {}).get("loss")
    return loss


def judge(rank: Rank, loop: Loop, step: int, scores: Json) -> None:
    """Report whether training improved the model.  `scores` are those of the result, the weights of `step`.

    Raises NotFiniteError where their loss is NaN, and NotImprovedError where the job asks for a lower one than before.
    """
    if not scores:
        return
    loss: float | None = scores["loss"]
    if loss is None:
        raise NotFiniteError(
            f"the held-out loss of the weights of step {step} is not finite, so they are no result",
            hint="lower optimization.learningRate; the checkpoints stay, and checkpoint.resumeFrom names one of them",
        )
    before = initial_loss(loop.state)
    loop.reporter.improvement(before, loss)
    found = improvement(before, loss)
    if rank.requested.evaluation.require_improvement and found.status != "True":
        raise NotImprovedError(
            f"{found.message}; evaluation.requireImprovement asks for a fall",
            hint=f"the checkpoints stay: without it, a job of this name and checkpoint.resumeFrom: '{step}' exports",
        )
