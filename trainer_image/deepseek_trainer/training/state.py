"""All that a resumed run needs to go on as if nothing had happened."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from deepseek_trainer.checkpoints.catalog import CheckpointInfo
from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.contract.foreign import optional, whole
from deepseek_trainer.model.precision import LossScale
from deepseek_trainer.telemetry.events import Event
from deepseek_trainer.training.guard import NormWatch
from deepseek_trainer.worker.distributed import World

Json = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]  # of weights, by name


@dataclass(slots=True)
class RunState:
    """The counters of a run.  They are saved as JSON in the checkpoint's manifest."""

    step: int = 0  # optimizer steps done
    best_loss: float = math.inf  # lowest validation loss so far [nats/token]
    best_step: int | None = None
    stale_evaluations: int = 0  # evaluations since the best one
    evaluated_step: int = 0  # the last step that was evaluated
    train_seconds: float = field(default=0.0, compare=False)  # of optimizer steps, over all attempts
    rollbacks: int = 0
    plateaus: int = 0
    stale_on_plateau: int = 0  # evaluations since the best one, or since the last plateau
    norms: NormWatch = field(default_factory=NormWatch)
    loss_scale: LossScale = field(default_factory=LossScale)
    before: Json = field(default_factory=dict)  # evaluation and answers before the first step
    history: list[Event] = field(default_factory=list)

    def evaluated(self, loss: float) -> bool:
        """Take in the validation loss of the current step.  Returns whether it is the best so far."""
        self.evaluated_step = self.step
        if not loss < self.best_loss:  # NaN is never better
            self.stale_evaluations += 1
            self.stale_on_plateau += 1
            return False
        self.best_loss, self.best_step, self.stale_evaluations, self.stale_on_plateau = loss, self.step, 0, 0
        return True

    def forget_best(self) -> None:
        """Begin the search for the best step anew: those so far were trained with other settings."""
        self.best_loss, self.best_step, self.stale_evaluations, self.stale_on_plateau = math.inf, None, 0, 0

    def reached_plateau(self, patience: int) -> bool:
        """Whether the loss has stalled for `patience` evaluations.  If so, they are counted from 0 again."""
        if self.stale_on_plateau < patience:
            return False
        self.plateaus, self.stale_on_plateau = self.plateaus + 1, 0
        return True

    @property
    def rate_factor(self) -> float:
        """What rollbacks and plateaus have left of the learning rate."""
        return 0.5 ** (self.rollbacks + self.plateaus)

    def to_json(self) -> Json:
        return asdict(self) | {"best_loss": None if math.isinf(self.best_loss) else self.best_loss}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        best, _ = optional(float, data["best_loss"]), whole(data["step"])
        parts = {"norms": NormWatch(**data.get("norms", {})), "loss_scale": LossScale(**data.get("loss_scale", {}))}
        return cls(**{**data, "best_loss": math.inf if best is None else best} | parts)


def load_weights(trained: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
    """Put the checkpoint's weights, and their averages, into `trained`'s "model" and "ema", in place.

    If the checkpoint has no averages, they begin as its weights.
    """
    refuse_other_model(*({name: tuple(of.shape) for name, of in held["model"].items()} for held in (trained, state)))
    with torch.no_grad():
        for part in ("model", "ema"):
            for name, tensor in trained.get(part, {}).items():
                tensor.copy_(state.get(part, state["model"])[name])


def refuse_other_model(wanted: Shapes, found: Shapes) -> None:
    """Raise ConfigError if a checkpoint's weights (`found`) differ in name or shape from the model's (`wanted`)."""
    if wanted != found:
        name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ConfigError(
            f"the checkpoint is of another model: {name} has shape {found.get(name)} there, {wanted.get(name)} here",
            hint="give the job the model and method of the checkpoint, or start over with checkpoint.resumeFrom: None",
        )


def refuse_other_base(wanted: str | None, info: CheckpointInfo, name_of: Callable[[str], str]) -> None:
    """Raise ConfigError if a checkpoint was trained beside another base model.  Old ones do not record theirs.

    `name_of` says what to call a digest where others read it.
    """
    found = info.meta.get("baseDigest")
    if found not in (None, wanted):
        raise ConfigError(
            f"the checkpoint of step {info.step} was trained beside the base model {name_of(found)}, the job's "
            f"is {wanted and name_of(wanted)}",
            hint="give model.base and model.adapter back what they held, or start over: checkpoint.resumeFrom: None",
        )


def random_state(world: World) -> dict[str, Tensor]:
    """The state of this rank's random generators."""
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def restore_random_state(state: Mapping[str, Tensor], world: World) -> None:
    """Restore what the saving run had for this rank and device.  What it did not have stays as it is."""
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and world.device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], world.device)
