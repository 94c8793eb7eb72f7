"""When a run is saved, and what its checkpoints hold."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepseek_trainer.checkpoints.saver import Saver
from deepseek_trainer.contract.checkpoint import CheckpointPolicy
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.telemetry.events import Event
from deepseek_trainer.training.learner import Learner
from deepseek_trainer.training.state import RunState


@dataclass(slots=True)
class Savepoints:
    """The checkpoints of one run, on one rank."""

    saver: Saver
    policy: CheckpointPolicy
    origin: Mapping[str, Any]  # what each records beside the state
    now: Callable[[], float] = time.monotonic  # [s]
    has_rolled_back: bool = False  # since the last checkpoint
    step: int = 0  # the last one that was saved
    _best: int | None = -1  # the best step at the last call of `save`; -1: not known
    _at: float = field(init=False)  # when the last checkpoint began [s]

    def __post_init__(self) -> None:
        self._at = self.now()

    def save(self, state: RunState, learner: Learner, cursor: Cursor, history: list[Event]) -> None:
        """Begin a checkpoint of the current step, unless there is one; drop those that retention gives up."""
        best, before = state.best_step, self._best
        self._best = best
        if self.step == state.step:
            if best != before:
                self.saver.prune(best)
            return
        meta = {**self.origin, "run": state.to_json() | {"history": history}, "cursor": cursor.state().hex()}
        self.saver.save(state.step, learner.state(), meta, best)
        self.step, self._at, self.has_rolled_back = state.step, self.now(), False

    def rolled_back(self, step: int) -> None:
        """The run went back to the checkpoint of `step`: the next step is saved, whether it is due or not."""
        self.step, self._best, self.has_rolled_back = step, -1, True

    def is_due(self, step: int) -> bool:
        """Whether `step` is to be saved, by the count of steps or because of a rollback."""
        interval = self.policy.interval.steps
        return self.has_rolled_back or (interval is not None and step % interval == 0)

    def is_due_by_the_clock(self) -> bool:
        seconds = self.policy.interval.seconds
        return seconds is not None and self.now() - self._at >= seconds
