"""The training loop: one turn of `while` is one optimizer step, and all ranks take it together."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import nn

from deepseek_trainer.contract.config import TrainingConfig
from deepseek_trainer.contract.errors import NotFiniteError
from deepseek_trainer.contract.optimization import Schedule
from deepseek_trainer.data.cursor import Cursor
from deepseek_trainer.data.dataset import Rows
from deepseek_trainer.data.loader import Load, loader
from deepseek_trainer.evaluation.evaluate import EvalResult, evaluate_loss
from deepseek_trainer.model.precision import compute_dtype
from deepseek_trainer.telemetry.meter import Meter, Ranks
from deepseek_trainer.telemetry.profiler import Profiler
from deepseek_trainer.telemetry.reporter import Reporter, StepResult
from deepseek_trainer.training.guard import Verdict
from deepseek_trainer.training.horizon import Horizon
from deepseek_trainer.training.learner import Learner
from deepseek_trainer.training.savepoints import Savepoints
from deepseek_trainer.training.schedule import learning_rate
from deepseek_trainer.training.state import RunState
from deepseek_trainer.worker.distributed import World
from deepseek_trainer.worker.process import StopRequested


@dataclass(slots=True)
class Loop:
    """One run of one job, on one rank."""

    config: TrainingConfig
    world: World
    learner: Learner
    train_rows: Rows[Any]
    validation_rows: Rows[Any]
    cursor: Cursor
    state: RunState
    savepoints: Savepoints
    reporter: Reporter
    stop_requested: Callable[[], bool]
    now: Callable[[], float] = time.monotonic  # [s]
    profiler: Profiler | None = None
    evaluation: EvalResult | None = field(init=False, default=None)  # of the weights as they are
    _horizon: Horizon = field(init=False)
    _load: Load[Any] = field(init=False)
    _meter: Meter = field(init=False)
    _scales_loss: bool = field(init=False)
    _last_seconds: float = field(init=False, default=0.0)  # of the last step, on this rank; all ranks go by the lead's

    def __post_init__(self) -> None:
        optimization = self.config.optimization
        self._horizon = Horizon.of(optimization, len(self.train_rows))
        self._load = loader(self.train_rows, self.world, optimization.micro_batch_size)
        self._meter = Meter(self.world.device, self.now)
        self._scales_loss = compute_dtype(optimization.precision, self.world.device) is torch.float16
        self.savepoints.step = self.state.step

    @property
    def model(self) -> nn.Module:
        return self.learner.model

    @property
    def holds_out(self) -> bool:
        """Whether there are rows to evaluate on."""
        return len(self.validation_rows) > 0

    def run(self) -> None:
        """Train to the end or to early stopping.  Raises StopRequested on a stop.  The last step is always saved."""
        if self.world.size > 2:
            self.learner.settle_order_of_sums(self._load(self.cursor)[0])
        self._complete_step()
        while not (self._is_last() or self._has_stalled()):
            started = self.now()
            if self.profiler:
                self.profiler.before_step(self.state.step + 1)
            batches = self._next_batches()
            targets, size = self._agree_on_step(batches)
            result = self._step(batches, targets)
            self._last_seconds = self.now() - started
            self.reporter.step(result, size, self._last_seconds)
            self._complete_step()
            self._report_saves()
        self._tell_of_early_stop()
        self._save_to_the_end()

    def evaluate(self) -> None:
        """Measure the loss.  Remember the best step, and save it if the job keeps the best."""
        result = self.measure()
        is_best = self.state.evaluated(result.loss)
        self.reporter.evaluation(self.state.step, self.cursor.epoch, result)
        optimization = self.config.optimization
        if optimization.schedule is Schedule.PLATEAU and self.state.reached_plateau(optimization.plateau_patience):
            self.reporter.event("plateau", step=self.state.step, rateFactor=self.state.rate_factor)
        if is_best and self.config.checkpoint.retention.keep_best:
            self.save()

    def measure(self) -> EvalResult:
        """Loss on the held-out rows, over all ranks; raises StopRequested on a stop."""
        self.savepoints.saver.before_change()  # the averages take the weights' place
        try:
            with self.learner.averaged():
                self.evaluation = self._evaluated()
        except StopRequested:
            self._save_to_the_end()  # the weights, which are in their place again
            raise
        return self.evaluation

    def leave_if_stopped(self) -> None:
        """Collective.  Raises StopRequested where any rank was asked to stop, once the last step is saved."""
        if self.world.any(self._is_to_stop()):
            self._leave()

    def save(self) -> None:
        """Begin a checkpoint of the current step, unless there is one."""
        self.savepoints.save(self.state, self.learner, self.cursor, self.reporter.history)

    def _evaluated(self) -> EvalResult:
        return evaluate_loss(
            self.learner.loss,
            self.validation_rows,
            max_rows=self.config.evaluation.max_rows,
            batch_size=self.config.optimization.micro_batch_size,
            rank=self.world.rank,
            world_size=self.world.size,
            reduce=self.world.sum,
            before_batch=self._hear_stop,
        )

    def _hear_stop(self) -> None:
        """Collective.  Raises StopRequested where any rank was asked to stop; nothing is saved."""
        if self.world.any(self._is_to_stop()):
            raise StopRequested

    def _is_to_stop(self) -> bool:
        """Whether this rank was asked to stop.

        After a rollback the next step is saved first: else the next run would read the same rows again.
        """
        return self.stop_requested() and not self.savepoints.has_rolled_back

    def _leave(self) -> NoReturn:
        self._save_to_the_end()
        raise StopRequested

    def _save_to_the_end(self) -> None:
        if self.profiler:
            self.profiler.finish(self.state.step + 1)
        self.save()
        self.savepoints.saver.wait()
        self._report_saves()

    def _report_saves(self) -> None:
        for saved in self.savepoints.saver.finished():
            self.reporter.checkpoint(saved)

    def _complete_step(self) -> None:
        """Evaluate and save if that is due after this step; after a resume, make up for what a stop cut off."""
        is_due = self.state.step % self.config.evaluation.interval_steps == 0 or self._is_last()
        if self.holds_out and is_due and self.state.evaluated_step != self.state.step:
            self.evaluate()
        if self.savepoints.is_due(self.state.step):
            self.save()

    def _agree_on_step(self, batches: Sequence[Any]) -> tuple[int, int]:
        """Before a step, agree with all ranks whether to stop or to save, and do it.

        Returns the targets and the size of all ranks' `batches`.  Raises StopRequested on a stop.
        """
        targets, size, stop, save, has_failed, self.state.train_seconds = self.world.sum(
            [
                sum(self.learner.loss.count(batch) for batch in batches),
                sum(batch.size for batch in batches),
                self._is_to_stop(),
                self.world.is_lead and self.savepoints.is_due_by_the_clock(),
                self.savepoints.saver.has_failed,
                self.world.is_lead and self.state.train_seconds + self._last_seconds,
            ]
        )
        if has_failed:
            self.savepoints.saver.wait()
        if stop:
            self._leave()
        if save:
            self.save()
        return int(targets), int(size)

    def _next_batches(self) -> list[Any]:
        """This rank's rows of the next step, in micro-batches."""
        with self._meter.waiting():
            return self._load(self.cursor)

    def _step(self, batches: Sequence[Any], targets: int) -> StepResult:
        """Take or skip an optimizer step.  Raises NotFiniteError on every rank, with the weights unchanged."""
        scale = self.state.loss_scale.value if self._scales_loss else 1.0
        self._meter.begin()
        summed = self.learner.accumulate(batches, targets / scale, self._meter.end)
        scaled_norm = self.learner.gradient_norm()
        loss, norm = torch.stack([summed, scaled_norm.double() / scale]).tolist()  # the only wait for the device
        self._meter.add()
        rate = self._rate()
        self.cursor = self.cursor.advanced()
        self.state.step += 1
        self.evaluation = None
        if self._may_change(norm):
            self.savepoints.saver.before_change()
            self.learner.update(rate, scaled_norm, scale, self.state.step)
        else:
            self.learner.discard()
        return self._result(loss, norm, rate, targets)

    def _result(self, loss: float, norm: float, rate: float, targets: int) -> StepResult:
        """What is reported of the step; on a logged step with the mean loss and what the ranks measured."""
        mean, ranks = self._agreed(loss, targets) if self._is_logged() else (None, None)
        return StepResult(
            step=self.state.step,
            max_steps=self._horizon.expected_steps(self.state.step, self.state.train_seconds),
            epoch=self.cursor.epoch,
            rows=self.cursor.global_batch,
            loss=mean,
            grad_norm=norm,
            learning_rate=rate,
            ranks=ranks,
        )

    def _agreed(self, loss: float, targets: int) -> tuple[float, Ranks]:
        """The mean of all ranks' `targets` losses, and what the ranks measured since the last logged step."""
        total, *measured = self.world.sum([loss, *self._meter.contribution(self.world.rank, self.world.size)])
        return total / targets, Ranks.of(measured)

    def _rate(self) -> float:
        spent = self._horizon.time_spent(self.state.train_seconds)
        of_schedule = learning_rate(self.state.step, self._horizon.steps, self.config.optimization, spent)
        return of_schedule * self.state.rate_factor

    def _may_change(self, norm: float) -> bool:
        """Whether a step with this gradient norm, of all ranks, may be taken.  If not, reports it and may roll back."""
        if self._scales_loss and not math.isfinite(norm) and self.state.loss_scale.overflowed():
            return False
        verdict = self.state.norms.judge(norm, self.config.optimization.guard)
        if verdict is Verdict.GOOD:
            self.state.loss_scale.fitted()
            return True
        self.reporter.event("skipped", step=self.state.step, reason=verdict.value, gradNorm=norm)
        if self.state.norms.skipped > self.config.optimization.guard.max_skips:
            self._roll_back(verdict, norm)
        return False

    def _roll_back(self, verdict: Verdict, norm: float) -> None:
        """Go back to the last checkpoint, and on from there at half the rate, with the data that come next."""
        store = self.savepoints.saver.store
        self.savepoints.saver.wait()
        info = store.latest()
        if info is None or self.state.rollbacks >= self.config.optimization.guard.max_rollbacks:
            raise not_finite(verdict, self.state, norm)
        left, spent, rollbacks = self.state.step, self.state.train_seconds, self.state.rollbacks
        self.learner.load(store, info)
        self.state = RunState.from_json(info.meta["run"])
        self.state.train_seconds, self.state.rollbacks = spent, rollbacks + 1
        self.state.norms.skipped = 0
        self.savepoints.rolled_back(info.step)
        self.reporter.event("rolled_back", step=left, to=info.step, rateFactor=self.state.rate_factor)

    def _is_logged(self) -> bool:
        return self._horizon.is_logged(self.state.step) or self._is_last()

    def _is_last(self) -> bool:
        return self._horizon.is_reached(self.state.step, self.state.train_seconds)

    def _tell_of_early_stop(self) -> None:
        if not self._is_last():
            expected = self._horizon.expected_steps(self.state.step, self.state.train_seconds)
            self.reporter.stopped_early(self.state.step, expected, self.state.stale_evaluations)

    def _has_stalled(self) -> bool:
        stopping = self.config.optimization.early_stopping
        return stopping is not None and self.state.stale_evaluations >= stopping.patience


def not_finite(verdict: Verdict, state: RunState, norm: float) -> NotFiniteError:
    """The error that ends a run that no rollback can help."""
    what = "is" if verdict is Verdict.NOT_FINITE else f"is far above its mean {state.norms.mean:.3g}:"
    return NotFiniteError(
        f"step {state.step}: the gradient norm {what} {norm:.3g}, no weight was changed; "
        f"{state.norms.skipped} steps in a row, {state.rollbacks} rollbacks",
        hint="lower optimization.learningRate or raise warmupSteps; the last checkpoint is good",
    )
