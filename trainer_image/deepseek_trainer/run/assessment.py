"""What a run's model can do, before and after training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from torch import nn

from deepseek_trainer.contract.documents import finite
from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.evaluation.evaluate import EvalResult
from deepseek_trainer.tasks.task import Task
from deepseek_trainer.training.loop import Loop

Json = dict[str, Any]
I = TypeVar("I")  # noqa: E741  an item that the model is asked about
T = TypeVar("T")

NOTHING_MEASURED: Final[Json] = {"scores": {}, "answers": []}  # where no record is held out


def assessed(loop: Loop, task: Task[Any], result: EvalResult) -> Json:
    """What the model can do now: {"scores": numbers, "answers": texts}.  `result` is its measured loss.

    Collective.  Raises StopRequested on a stop, for which it looks between batches.
    """
    loop.reporter.stage("evaluating")
    scores = {name: finite(value) for name, value in {"loss": result.loss, **result.figures}.items()}
    found = task.assess(LoopAsk(loop))
    return {"scores": scores | found.scores, "answers": found.answers}


@dataclass(frozen=True, slots=True)
class LoopAsk:
    """Asks a loop's model.  Each rank asks its share, and all ranks get all answers."""

    loop: Loop

    @property
    def rows(self) -> Rows[Any]:
        return self.loop.validation_rows

    @property
    def batch_size(self) -> int:
        return self.loop.config.optimization.micro_batch_size

    def over(self, items: Sequence[I], at_once: int, ask: Callable[[nn.Module, Sequence[I]], list[T]]) -> list[T]:
        world, found = self.loop.world, list[T]()
        for start in range(0, len(items), at_once * world.size):
            self.loop.leave_if_stopped()
            part = items[start : start + at_once * world.size]
            with self.loop.learner.finished() as model, self.loop.learner.autocast:
                mine = ask(model, part[world.rank :: world.size])
            shares = world.gather(mine)
            found += [shares[i % world.size][i // world.size] for i in range(len(part))]
        return found

    def event(self, event: str, **numbers: Any) -> None:
        self.loop.reporter.event(event, step=self.loop.state.step, **numbers)
