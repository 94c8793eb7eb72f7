"""All that a resumed run needs to go on as if nothing had happened."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from deepseek_trainer.contract.errors import ConfigError
from deepseek_trainer.distributed import World
from deepseek_trainer.events import Event
from deepseek_trainer.optimizer import load_state_by_name, state_by_name

Json = dict[str, Any]


@dataclass(slots=True)
class RunState:
    """The counters of a run; JSON in the checkpoint's manifest."""

    step: int = 0  # optimizer steps done
    best_loss: float = math.inf  # lowest validation loss so far [nats/token]
    best_step: int | None = None
    stale_evaluations: int = 0  # evaluations since the best one
    evaluated_step: int = 0  # the last step that was evaluated
    before: Json = field(default_factory=dict)  # evaluation and answers before the first step
    history: list[Event] = field(default_factory=list)

    def evaluated(self, loss: float) -> bool:
        """Take in the validation loss of the current step; whether it is the best so far."""
        self.evaluated_step = self.step
        if not loss < self.best_loss:  # NaN is never better
            self.stale_evaluations += 1
            return False
        self.best_loss, self.best_step, self.stale_evaluations = loss, self.step, 0
        return True

    def to_json(self) -> Json:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return fields | {"best_loss": None if math.isinf(self.best_loss) else self.best_loss}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        best = data["best_loss"]
        return cls(**{**data, "best_loss": math.inf if best is None else best})


def checkpoint_state(model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Json:
    """This rank's random state, and weights and moments, which the ranks share."""
    return {
        "rng": _random_state(world),
        "model": {name: p.detach() for name, p in model.named_parameters() if p.requires_grad},
        "optimizer": state_by_name(model, optimizer),
    }


def load_weights(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put the checkpoint's trained weights into `model`, in place."""
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    _refuse_other_model(parameters, state["model"])
    with torch.no_grad():
        for name, value in state["model"].items():
            parameters[name].copy_(value)


def _refuse_other_model(parameters: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    wanted = {name: tuple(value.shape) for name, value in parameters.items()}
    found = {name: tuple(value.shape) for name, value in saved.items()}
    if wanted != found:
        name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
        raise ConfigError(
            f"the checkpoint is of another model: {name} has shape {found.get(name)} there, {wanted.get(name)} here",
            hint="give the job the model and method of the checkpoint, or start over with checkpoint.resumeFrom: None",
        )


def load_state(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any], world: World) -> None:
    """Go back to the checkpoint's `state`.

    Without "rng", for a rank that the saving run did not have, the random state stays as it is.
    """
    load_weights(model, state)
    load_state_by_name(model, optimizer, state["optimizer"])
    random = state.get("rng", {})
    if "cpu" in random:
        torch.set_rng_state(random["cpu"])
    if "cuda" in random and world.device.type == "cuda":
        torch.cuda.set_rng_state(random["cuda"], world.device)


def _random_state(world: World) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state
